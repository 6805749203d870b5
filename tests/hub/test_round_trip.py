"""Train, push, delete, load again: in processes of their own, against a Hub on loopback that speaks the real protocol."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import File
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from iltm_anomaly.cli import main
from iltm_anomaly.hub import upload
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.synthetic.dataset import generate_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "org/iltm-mine"


def readme_block(language: str) -> str:
    """The block of README's section on the Hub, as printed."""
    section = (REPOSITORY / "README.md").read_text().split("### The Hub\n")[1].split("\n### ")[0]
    (block,) = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return block


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder with a trained run in `runs/mine` and an image, as README has it."""
    folder = tmp_path_factory.mktemp("work")
    dataset = generate_dataset(
        kind="part", size=64, num_train=12, num_test_good=1, num_test_defective=1, contamination=0.2, seed=0
    )
    (folder / "images").mkdir()
    for number, image in enumerate(dataset["train"]["image"]):
        image.save(folder / "images" / f"{number}.png")
    dataset["test"]["image"][1].save(folder / "part.png")
    values = load_recipe("tiny").to_dict()
    values["stage1"]["epochs"] = values["stage2"]["epochs"] = 3
    values["rounds"] |= {"rounds": 1, "outlier_scale": 1.5}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    options = ["--preset", str(folder / "recipe.yaml"), "--output", str(folder / "runs" / "mine"), "--cpu"]
    assert main(["train", "--data", str(folder / "images"), *options]) == 0
    return folder


PRINT = """
import json
print(json.dumps({
    "scores": out.scores[0].item().hex(), "map": out.anomaly_maps[0].tobytes().hex(),
    "healed": out.healed_images[0].tobytes().hex(), "likelihoods": out.token_log_likelihoods.numpy().tobytes().hex(),
}))
"""
LOCAL = "import iltm_anomaly\nout = iltm_anomaly.ILTMAnomalyPipeline.from_pretrained('runs/mine/model')('part.png')\n"


def run_python(code: str, folder: Path, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


def run_shell(script: str, folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-ec", script]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=300
    )


def test_readme_round_trip_is_bit_equal_online_and_offline(hub, work, tmp_path):
    folder = tmp_path / "work"
    shutil.copytree(work, folder)
    expected = run_python(LOCAL + PRINT, folder)

    pushed = run_shell(readme_block("bash"), folder)
    assert pushed.returncode == 0, pushed.stderr
    dry, sent = pushed.stdout.split("dry run: nothing was sent; above is what README.md, the card, says\n")
    card, files = re.split(rf"^(?=model {NAME}: )", dry, flags=re.MULTILINE)
    assert sent.startswith(files) and f"{hub.url}/{NAME}/commit/" in sent
    tree = hub.repositories[NAME].commits[hub.repositories[NAME].branches["main"]]
    assert card.strip() == tree["README.md"].content.decode().strip() and "pipeline_tag" in card
    listed = {
        line.split()[1]: int(line.split()[0].replace(",", "")) for line in files.splitlines()[1:] if "left" not in line
    }
    assert {name: len(file.content) for name, file in tree.items() if name != ".gitattributes"} == listed
    assert len(hub.repositories[NAME].commits) == 2  # that of its creation, and one for all files

    shutil.rmtree(folder / "runs")
    before = len(hub.requests)
    assert run_python(readme_block("python") + PRINT, folder) == expected
    downloads = [path for method, path in hub.requests[before:] if method == "GET" and "/resolve/" in path]
    assert len(downloads) == len(set(downloads)) and all("/resolve/main/" not in path for path in downloads)
    asked = len(hub.requests)
    assert run_python(readme_block("python") + PRINT, folder, HF_HUB_OFFLINE="1") == expected
    assert len(hub.requests) == asked
    found = run_shell(f"iltm-anomaly detect {NAME} part.png --output found", folder)
    assert found.returncode == 0 and "1 scored" in found.stdout, found.stderr


def test_training_ends_with_an_upload_if_it_is_asked_for(hub, work):
    words = "train --data images --preset recipe.yaml --output runs/mine --cpu --resume --push-to-hub"
    sent = run_shell(f"iltm-anomaly {words} org/trained", work)
    assert sent.returncode == 0 and f"{hub.url}/org/trained/commit/" in sent.stdout, sent.stderr
    tree = hub.repositories["org/trained"].commits[hub.repositories["org/trained"].branches["main"]]
    assert {"model_index.json", "prior/model.safetensors", "README.md"} <= set(tree)
    refused = run_shell(f"iltm-anomaly {words} trained", work)
    assert refused.returncode == 2 and "'trained' is no name of a repository: give owner/name" in refused.stderr


def test_a_cut_upload_is_retried_and_sends_nothing_twice(hub, work):
    hub.cut_uploads = 50  # more than the client tries by itself
    retry = "import huggingface_hub.utils._http as h, time; h.time.sleep = lambda _: None;"  # its waits, not its tries
    code = retry + "import sys; from iltm_anomaly.cli import main; sys.exit(main(['push', 'runs/mine', 'org/cut']))"
    first = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, timeout=300)
    assert first.returncode == 2 and "Run the same command again" in first.stderr and "Traceback" not in first.stderr
    assert list(hub.repositories["org/cut"].commits.values())[-1].keys() == {".gitattributes"}
    arrived = list(hub.uploaded)
    hub.cut_uploads = 1  # one more hiccup, which the client mends by itself
    hub.cut_downloads = 1
    second = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    assert len(hub.uploaded) == len(set(hub.uploaded)) == 3 and hub.uploaded[: len(arrived)] == arrived
    load = (
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1000;"  # or half a small file is lost in a buffer
        "import iltm_anomaly as i; p = i.ILTMAnomalyPipeline.from_pretrained({0}); print(p.noise.sum().item().hex())"
    )
    assert run_python(load.format("'org/cut'"), work) == run_python(load.format("'runs/mine/model'"), work)
    assert hub.cut_downloads == 0 and hub.cut_uploads == 0
    assert any(start > 0 for start in hub.ranges)  # what had come was not asked for again


def test_a_push_that_is_not_allowed_says_what_to_do(hub, work):
    code = """
import json
from iltm_anomaly.hub.upload import UploadError, plan_upload, upload
said = []
for token in ("hf_stranger", "hf_unknown"):
    try:
        upload(plan_upload("runs/mine/model", "org/theirs"), token=token)
    except UploadError as error:
        said.append(str(error))
print(json.dumps(said))
"""
    for status, said in zip(("403", "401"), json.loads(run_python(code, work)), strict=True):
        assert status in said and "may write to org: `hf auth login`" in said
        assert said.count("repos/create") == 1 and "again" not in said
    assert not hub.repositories


LOADS = """
import json, sys
import iltm_anomaly
from transformers import AutoConfig, AutoImageProcessor, AutoModel

def attempt(*arguments, load=iltm_anomaly.ILTMAnomalyPipeline.from_pretrained, **options):
    try:
        return type(load(*arguments, **options)).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"

stranger = {"token": "hf_stranger"}
name = "org/all"
print(json.dumps({
    "private, nobody": attempt("org/private", token=False),  # before the owner has filled the cache
    "private, stranger": attempt("org/private", **stranger),
    "gated, nobody": attempt("org/gated", token=False),
    "private": attempt("org/private"),
    "gated, stranger": attempt("org/gated", **stranger),
    "gated": attempt("org/gated"),
    "nothing": attempt("org/nothing"),
    "revision": attempt(name, revision="v2"),
    "no revision": attempt(name, revision="v3"),
    "elsewhere": attempt(name, cache_dir=sys.argv[1]),
    "elsewhere again": attempt(name, cache_dir=sys.argv[1], local_files_only=True),
    "not here": attempt(name, cache_dir=sys.argv[1] + "2", local_files_only=True),
    "sharded": attempt("org/sharded"),
    "pickle": attempt("org/pickle"),
    "tokenizer": attempt(name, load=iltm_anomaly.VQVAEModel.from_pretrained, subfolder="tokenizer", revision="v2"),
    "prior": attempt(name, load=AutoModel.from_pretrained, subfolder="prior"),
    "config": attempt(name, load=AutoConfig.from_pretrained, subfolder="prior"),
    "processor": attempt(name, load=AutoImageProcessor.from_pretrained, subfolder="image_processor"),
}))
"""


def test_access_revisions_cache_and_parts(hub, work, tmp_path):
    """What `from_pretrained` does with each kind of repository, in one process."""
    push = """
        import sys
        from iltm_anomaly import ILTMAnomalyPipeline
        pipe = ILTMAnomalyPipeline.from_pretrained("runs/mine/model")
        for name in ("private", "gated", "all", "pickle"):
            pipe.push_to_hub("org/" + name, private=name == "private")
        pipe.push_to_hub("org/all", revision="v2")
        for name, model in pipe.components.items():
            save = model.save_pretrained
            if name != "image_processor":
                model.save_pretrained = lambda folder, save=save: save(folder, max_shard_size="20KB")
        pipe.push_to_hub("org/sharded")
        pipe.push_to_hub("org/all", revision="v2")
    """
    run_python("\n".join(line[8:] for line in push.splitlines()) + "\nprint(1)", work)
    hub.repositories["org/gated"].gated = True
    pickled = hub.repositories["org/pickle"]
    weights = File(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.", True)
    hub.store[weights.sha256] = weights.content
    tree = pickled.commits[pickled.branches["main"]]
    pickled.commit(
        {k: v for k, v in tree.items() if k != "tokenizer/model.safetensors"}
        | {"tokenizer/pytorch_model.bin": weights},
        "main",
    )
    sharded = hub.repositories["org/all"].commits[hub.repositories["org/all"].branches["v2"]]
    assert (
        "prior/model.safetensors.index.json" in sharded and "prior/model.safetensors" not in sharded
    )  # the old one is gone

    path = [sys.executable, "-c", LOADS, str(tmp_path / "elsewhere")]
    done = subprocess.run(path, cwd=work, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    good = ("private", "gated", "revision", "elsewhere", "elsewhere again", "sharded")
    assert {key: found[key] for key in good} == dict.fromkeys(good, "ILTMAnomalyPipeline")
    expected = {
        "private, nobody": "RepositoryNotFoundError",
        "private, stranger": "RepositoryNotFoundError",
        "gated, nobody": "GatedRepoError",
        "gated, stranger": "GatedRepoError",
        "nothing": "RepositoryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "not here": "LocalEntryNotFoundError",
        "pickle": "ValueError",
    }
    assert {key: found[key].split(":")[0] for key in expected} == expected
    assert "no model.safetensors" in found["pickle"]
    assert found["gated, nobody"].split(": ")[1].startswith("401") and "403" in found["gated, stranger"]
    assert not any(path.endswith("pytorch_model.bin") for method, path in hub.requests if method == "GET")
    parts = {"tokenizer": "VQVAEModel", "prior": "PerformerPriorModel", "config": "PerformerPriorConfig"}
    assert {key: found[key] for key in parts} == parts and found["processor"] == "ILTMImageProcessor"


def test_what_one_writes_for_any_model(hub, work):
    push = """
from iltm_anomaly import ILTMAnomalyPipeline
pipe = ILTMAnomalyPipeline.from_pretrained("runs/mine/model")
about = {"commit_message": "Mine", "commit_description": "Why", "create_pr": True, "tags": ["bottles"]}
pipe.save_pretrained("saved", push_to_hub=True, repo_id="org/proposed", **about)
print(pipe.push_to_hub("org/proposed", create_pr=True))
"""
    assert run_python(push, work) == f"{hub.url}/org/proposed/discussions/1"
    proposed = hub.repositories["org/proposed"]
    assert hub.messages == [("Mine", "Why"), ("Upload ILTM pipeline", "")]
    _, first, second = proposed.commits.values()
    assert b"- bottles" in first["README.md"].content and b"- bottles" not in second["README.md"].content
    assert len(proposed.commits[proposed.branches["main"]]) == 1, "only proposed"
    proposed.commit({f"parts/mine/{path}": file for path, file in first.items()}, "main")
    load = """
from iltm_anomaly import ILTMAnomalyPipeline
for _ in range(2):
    pipe = ILTMAnomalyPipeline.from_pretrained("org/proposed", subfolder="parts/mine", force_download=True)
print(pipe.noise.sum().item().hex())
"""
    local = (
        "import iltm_anomaly as i; print(i.ILTMAnomalyPipeline.from_pretrained('runs/mine').noise.sum().item().hex())"
    )
    assert run_python(load, work) == run_python(local, work)
    fetched = [
        path for method, path in hub.requests if method == "GET" and path.endswith("parts/mine/calibration.json")
    ]
    assert len(fetched) == 2


@pytest.fixture
def run(work, tmp_path) -> Path:
    """A run folder of one's own."""
    shutil.copytree(work / "runs" / "mine", tmp_path / "run")
    return tmp_path / "run"


def test_a_push_never_takes_data_logs_or_secrets(run, tmp_path, capsys):
    model = run / "model"
    for folder in (run, model):
        Image.new("RGB", (8, 8)).save(folder / "customer.png")
        (folder / "stage.json").write_text("{}")
        (folder / "images.arrow").write_bytes(b"ARROW1")
        (folder / ".env").write_text("HF_TOKEN=hf_" + "a" * 30)
    assert main(["push", str(run), NAME, "--dry-run"]) == 0
    *listed, nothing = capsys.readouterr().out.splitlines()
    left = [line.split()[-1] for line in listed if "left here" in line]
    assert left == [".env", "customer.png", "images.arrow", "stage.json"] and "nothing was sent" in nothing
    plan = plan_upload(model, NAME)
    assert plan.left_out == left and not {*left} & {*plan.files} and "README.md" in plan.files
    files = listed[next(number for number, line in enumerate(listed, 1) if line.startswith(f"model {NAME}: ")) :]
    assert {line.split()[-1] for line in files} == {*left, *plan.files}
    report = json.loads((model / "training_report.json").read_text())
    (model / "training_report.json").write_text(json.dumps(report | {"note": "hf_" + "a" * 30}))
    with pytest.raises(ValueError, match=r"training_report.json line \d+ holds what looks like a Hugging Face token"):
        plan_upload(model, NAME)
    assert main(["push", str(tmp_path), NAME]) == 2
    assert "neither a pipeline folder" in capsys.readouterr().err
    assert main(["push", str(run), "mine"]) == 2 and "give owner/name" in capsys.readouterr().err


def test_the_options_of_a_push_reach_it(run, monkeypatch, tmp_path):
    sent = []
    monkeypatch.setattr(upload, "upload", lambda plan, **options: sent.append((plan, options)) or "address")
    assert main(["push", str(run), NAME]) == 0
    assert sent[-1][1] == {"private": None, "revision": None} and "picture.png" not in sent[-1][0].files
    Image.new("RGB", (8, 8), "red").save(tmp_path / "mine.png")
    results = tmp_path / "results.json"
    results.write_text((REPOSITORY / "docs" / "results" / "demo.jsonl").read_text().splitlines()[0])
    options = ["--private", "--revision", "v2", "--results", str(results), "--picture", str(tmp_path / "mine.png")]
    assert main(["push", str(run), NAME, *options]) == 0
    plan, options = sent[-1]
    assert options == {"private": True, "revision": "v2"}
    assert plan.files["picture.png"] == (tmp_path / "mine.png").read_bytes()
    card = plan.files["README.md"]
    # without --results those of the run, where `evaluate` has been told to write them
    (run / "evaluation").mkdir()
    shutil.copy(results, run / "evaluation" / "results.json")
    assert main(["push", str(run), NAME, "--picture", str(tmp_path / "mine.png")]) == 0
    assert sent[-1][0].files["README.md"] == card


def test_the_report_goes_up_without_the_folders_of_this_machine(run):
    path = run / "model" / "training_report.json"
    report = json.loads(path.read_text())
    report["data"]["source"] = "/home/somebody/secret project/bolts"
    report["command"] = (
        "iltm-anomaly train --data /home/somebody/secret project/bolts --output=../Jane Doe/run --seed 0"
    )
    path.write_text(json.dumps(report))
    sent = json.loads(plan_upload(run / "model", NAME).files["training_report.json"])
    assert sent["data"]["source"] == "bolts"
    assert {k: v for k, v in sent.items() if k != "data"} == {
        k: v for k, v in report.items() if k not in ("data", "command")
    }


def test_folders_of_windows_stay_here_too(run):
    path = run / "model" / "training_report.json"
    report = json.loads(path.read_text())
    report["data"]["source"] = r"C:\Users\Jane Doe\secret project\bolts"
    report["notes"] = [
        r"from C:\Users\Jane Doe\runs\7 to D:/Jane Doe/out",
        r"on \\server\share of Jane\scans",
        r"in 'C:\\Users\\Jane\\x.png'",
        r"of C:\Users\Jane Doe\secret project\bolts",
    ]
    path.write_text(json.dumps(report))
    sent = json.loads(plan_upload(run / "model", NAME).files["training_report.json"])
    assert sent["data"]["source"] == "bolts"
    assert sent["notes"] == ["from 7 to out", "on scans", "in 'x.png'", "of bolts"]


SECRETS = {
    "a GitHub token": "github_pat_" + "1aB_" * 8,
    "a Slack token": "xoxb-" + "12345-" * 4 + "abc",
    "a Google key": "AIza" + "Sy0-_" * 7,
    "a password in an address": "https://jane:pass" + "word@example.org/data",
}


@pytest.mark.parametrize("what", SECRETS)
def test_secrets_are_found(run, what):
    (run / "model" / "README.md").write_text(f"By hand.\n\nSee {SECRETS[what]}\n")
    with pytest.raises(ValueError, match=f"README.md line 3 holds what looks like {what}"):
        plan_upload(run / "model", NAME)


@pytest.mark.parametrize("packed", [False, True])
def test_secrets_in_the_metadata_of_a_picture_are_found(run, tmp_path, packed):
    words = PngInfo()
    words.add_text("Comment", SECRETS["a GitHub token"], zip=packed)
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png", pnginfo=words)
    with pytest.raises(ValueError, match=r"picture.png in its metadata holds what looks like a GitHub token"):
        plan_upload(run / "model", NAME, picture=tmp_path / "mine.png")
    (tmp_path / "mine.png").write_bytes((tmp_path / "mine.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"picture.png is no PNG that can be read"):
        plan_upload(run / "model", NAME, picture=tmp_path / "mine.png")


def test_secrets_in_the_metadata_of_weights_are_found(run):
    path = run / "model" / "tokenizer" / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "note": SECRETS["a Google key"]})
    with pytest.raises(ValueError, match=r"model.safetensors in its metadata holds what looks like a Google key"):
        plan_upload(run / "model", NAME)


@pytest.mark.parametrize("name", ["tokenizer/model.safetensors", "calibration.json", "tokenizer"])
def test_links_do_not_go_up(run, name):
    (run / "model" / name).rename(run / "elsewhere")
    (run / "model" / name).symlink_to(run / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link"):
        plan_upload(run / "model", NAME)


@pytest.mark.parametrize(
    ("folder", "files"),
    [
        ("src/iltm_anomaly/metrics/aupro", {"README.md", "app.py", "aupro.py", "requirements.txt"}),
        ("space", {"README.md", "app.py", "requirements.txt", "examples/good.png", "model/model_index.json"}),
    ],
)
def test_the_metric_and_the_page_go_up_as_spaces(hub, work, folder, files):
    done = run_shell(f"python {REPOSITORY}/scripts/push_to_hub.py {REPOSITORY}/{folder} org/page", work)
    assert done.returncode == 0, done.stderr
    space = hub.repositories["org/page"]
    assert space.kind == "space" and space.sdk == "gradio"
    names = {*space.commits[space.branches["main"]]} - {".gitattributes"}
    assert names >= files and all(name in files or name.startswith(("examples/", "model/")) for name in names)


def test_what_a_space_tells_of_its_model_names_no_folder_of_the_machine(tmp_path):
    shutil.copytree(REPOSITORY / "space", tmp_path / "space")
    report = tmp_path / "space" / "model" / "training_report.json"
    report.write_text(
        json.dumps({"data": {"source": "/home/somebody/parts"}, "command": "train --data /home/somebody"})
    )
    assert b"somebody" not in plan_upload(tmp_path / "space", NAME).files["model/training_report.json"]
