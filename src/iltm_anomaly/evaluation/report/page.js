"use strict";
// What the page does by itself: the threshold, its histogram, filters and keys. Texts of the data become text, never HTML.
const byId = (name) => document.getElementById(name);
const data = JSON.parse(byId("data").textContent);
const rows = data.rows;
const usual = data.usual ? [...data.usual.good, ...data.usual.others] : [];
const cards = [...document.querySelectorAll("#gallery > li")];
const failures = [...document.querySelectorAll("#unreadable li")];
const buttons = cards.map((card) => card.querySelector(".pictures"));
const [slider, number, large] = [byId("slider"), byId("number"), byId("large")];
const { low, high, unit } = data.scale || { low: 0, high: 1, unit: 1 };  // all scores lie between low and high
const BINS = 60, WIDTH = 600, HEIGHT = 120;  // of the histogram, in units of its viewBox

let threshold = data.threshold;
let current = 0;  // the image that the keys are at
let visible = [];  // numbers of the images that are shown, in their order
const histograms = {};  // bars by the id of a histogram: two for each bin, of all and, before it, of those from the threshold on

const short = (value) => String(Number(value.toPrecision(6)));
// The verdict at the first threshold is the one that was written down, whatever the rounding of its score.
const isAbnormal = (row) => (threshold === data.threshold ? row.abnormal : row.score >= threshold);
const percent = (part, all) => (all ? `${Number(((100 * part) / all).toPrecision(3))} %` : "-");

// Places of scores from 0 to 1, nearly even below the first threshold, by their logarithm far above it; and back.
const whole = Math.asinh((high - low) / unit);
const placeOf = (score) => Math.asinh((Math.min(Math.max(score, low), high) - low) / unit) / whole;
const scoreAt = (place) => low + unit * Math.sinh(place * whole);
const binOf = (score) => Math.min(BINS - 1, Math.floor(BINS * placeOf(score)));

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

function makeBars(id) {
  histograms[id] = Array.from({ length: BINS }, (_, bin) => ["all", "abnormal"].map((kind) => {
    const bar = byId(id).querySelector("g").appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    set(bar, { class: kind, x: (bin * WIDTH) / BINS, width: WIDTH / BINS - 1 });
    return bar;
  }));
}

function drawHistogram(id, scores, verdicts, what) {
  const counts = histograms[id].map(() => [0, 0]);
  scores.forEach((score, index) => {
    const count = counts[binOf(score)];
    count[0] += 1;
    count[1] += Number(verdicts[index]);
  });
  const most = Math.max(...counts.map((count) => count[0]));
  counts.forEach((pair, bin) => pair.forEach((count, kind) => {
    const height = count ? Math.max(3, (HEIGHT * count) / most) : 0;  // one among many is seen too
    set(histograms[id][bin][kind], { y: HEIGHT - height, height });
  }));
  const place = WIDTH * placeOf(threshold);
  set(byId(id).querySelector(".limit"), { x1: place, x2: place });
  const [least, highest] = scores.reduce(([a, b], score) => [Math.min(a, score), Math.max(b, score)], [Infinity, -Infinity]);
  const range = `from ${short(least)} to ${short(highest)}`;
  set(byId(id), { "aria-label": `Histogram of ${scores.length} ${what} ${range}; threshold at ${short(threshold)}` });
}

// What training images lead one to expect: between the thresholds that are given, shares are interpolated.
function tellExpected({ good, others, of, expected }) {
  const above = expected.findIndex(([value]) => value >= threshold);
  const [from, to] = above < 0 ? [expected[expected.length - 1], expected[expected.length - 1]] : [expected[Math.max(above - 1, 0)], expected[above]];
  const way = to[0] > from[0] ? Math.min(Math.max((threshold - from[0]) / (to[0] - from[0]), 0), 1) : 1;
  const share = 100 * (from[1] + way * (to[1] - from[1]));
  const reach = (scores) => scores.filter((score) => score >= threshold).length;
  byId("expected").textContent = `To be expected: ${share < 0.1 ? "less than 0.1" : Number(share.toPrecision(3))} % of good ${of} called abnormal. ` +
    `Of ${good.length} training ${of} that look good, ${reach(good)} reach the threshold; of ${others.length} others, ${reach(others)} do.`;
}

// How verdicts and what is known go together, in words and as dots on the curves.
function tellFound(verdicts) {
  const count = (known, verdict) => rows.filter((row, index) => row.defective === known && (verdict === undefined || verdicts[index] === verdict)).length;
  const [bad, good, hits, alarms] = [count(true), count(false), count(true, true), count(false, true)];
  const said = [`Of ${bad} defective images ${hits} are found (recall ${percent(hits, bad)})`];
  if (good) said.push(`of ${good} good ones ${alarms} are false alarms (${percent(alarms, good)})`, `precision ${percent(hits, hits + alarms)}`);
  byId("found").textContent = `${said.join("; ")}.`;
  const places = { roc: [alarms / good, hits / bad], "precision-recall": hits + alarms ? [hits / bad, hits / (hits + alarms)] : null };
  for (const [name, place] of Object.entries(places)) {
    const plot = document.querySelector(`svg[data-plot=${name}]`);
    if (!plot) continue;
    const dot = plot.querySelector("circle") || plot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "circle"));
    dot.toggleAttribute("hidden", !place);
    if (place) set(dot, { r: 5, cx: 46 + 274 * place[0], cy: 196 - 186 * place[1] });
  }
}

function update() {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const words = byId("search").value.trim().toLowerCase();
  const fits = (path, ...kinds) => (kind === "all" || kinds.includes(kind)) && path.toLowerCase().includes(words);
  const wrong = (row, verdict) => (row.defective === true && !verdict ? "missed" : row.defective === false && verdict ? "false" : "");
  const verdicts = rows.map(isAbnormal), abnormal = verdicts.filter(Boolean).length;
  visible = [];
  rows.forEach((row, index) => {
    const card = cards[index], verdict = verdicts[index];
    if (card.classList.contains("abnormal") !== verdict) {
      card.classList.toggle("abnormal", verdict);
      card.querySelector(".verdict").textContent = data.words[Number(verdict)];
    }
    card.hidden = !fits(row.path, verdict ? "abnormal" : "normal", wrong(row, verdict));
    if (!card.hidden) visible.push(index);
  });
  failures.forEach((item, index) => { item.hidden = !fits(data.unreadable[index], "errors"); });
  const failed = failures.filter((item) => !item.hidden).length;
  if (byId("unreadable")) byId("unreadable").hidden = failed === 0;
  const counts = { all: rows.length + failures.length, abnormal, normal: rows.length - abnormal, errors: failures.length };
  if (data.known) for (const name of ["missed", "false"]) counts[name] = rows.filter((row, index) => wrong(row, verdicts[index]) === name).length;
  for (const [name, count] of Object.entries(counts)) byId(`count-${name}`).textContent = count;
  const at = rows.length ? `, at threshold ${short(threshold)}` : "";
  byId("status").textContent =
    `${data.words[1]}: ${abnormal} of ${rows.length} images${at}. Shown: ${visible.length + failed} of ${counts.all} files.`;
  if (rows.length) drawHistogram("histogram", rows.map((row) => row.score), verdicts, "scores");
  if (byId("usual")) drawHistogram("usual", usual, usual.map((score) => score >= threshold), "scores of training images");
  if (data.usual) tellExpected(data.usual);
  if (data.known) tellFound(verdicts);
  goTo(visible.includes(current) ? current : visible[0]);
}

// Marks an image as the one that the Tab key comes to: a thousand would be too many to step through.
function goTo(index) {
  if (index === undefined) return;
  buttons[current].tabIndex = -1;
  current = index;
  buttons[current].tabIndex = 0;
}

function setThreshold(value) {
  threshold = value;
  set(slider, { "aria-valuetext": short(value) });
  if (byId("keep")) byId("keep").textContent = short(value);
  update();
}

// The same with slider and number, which then show it.
function moveTo(value) {
  setThreshold(value);
  slider.value = placeOf(value);
  number.value = short(value);
}

let slices = null;  // of the volume that is enlarged: its numbers, and the level that is shown

function showSlices(template) {
  byId("large-slices").hidden = !template;
  slices = template && Object.fromEntries(Object.entries(template.dataset).map(([name, text]) => [name, Number(text)]));
  if (!slices) return;
  byId("slice").replaceChildren(template.content.cloneNode(true));
  byId("slice").style.aspectRatio = `${slices.width} / ${slices.height}`;
  byId("level").max = slices.count;
  goToSlice(slices.first);
}

function goToSlice(level) {
  slices.level = Math.min(Math.max(level, 0), slices.count - 1);
  const sheet = byId("slice").querySelector("img"), said = `${slices.level + 1} of ${slices.count}`;
  sheet.style.width = `${100 * slices.across}%`;
  sheet.style.left = `${-100 * (slices.level % slices.across)}%`;
  sheet.style.top = `${-100 * Math.floor(slices.level / slices.across)}%`;
  sheet.alt = `slice ${said}: ${rows[current].path}`;
  byId("level").value = slices.level + 1;
  set(byId("level"), { "aria-valuetext": said });
  byId("level-of").textContent = said;
}

function enlarge() {
  const card = cards[current];
  byId("large-title").textContent = `${current + 1}. ${rows[current].path}`;
  byId("large-pictures").replaceChildren(...[...card.querySelectorAll(".picture")].map((item) => item.cloneNode(true)));
  byId("large-text").replaceChildren(...[...card.querySelectorAll(".text > :not(.path)")].map((item) => item.cloneNode(true)));
  byId("large-text").className = card.className.replace("card", "");
  if (!large.open) large.showModal();
  showSlices(card.querySelector("template.slices"));
}

// Goes `step` images on, and no further than to the first or the last one shown.
function move(step) {
  if (!visible.length) return;
  const place = Math.min(Math.max(visible.indexOf(current) + step, 0), visible.length - 1);
  goTo(visible[place]);
  if (large.open) enlarge();
  else buttons[current].focus();
}

function columns() {
  const below = visible.findIndex((index) => cards[index].offsetTop !== cards[visible[0]].offsetTop);
  return below < 0 ? visible.length : below;
}

document.addEventListener("keydown", (event) => {
  if (!visible.length || event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const inGallery = event.target.matches(".pictures") && !large.open;
  if (large.open && slices && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
    event.preventDefault();
    return goToSlice(slices.level + (event.key === "ArrowUp" ? 1 : -1));
  }
  const down = inGallery ? columns() : 1;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -down, ArrowDown: down }[event.key];
  const scrolls = !inGallery && !large.open && (event.key === "ArrowUp" || event.key === "ArrowDown");
  if (step === undefined || scrolls) return;
  event.preventDefault();
  move(inGallery || large.open ? step : 0);  // from elsewhere the first key comes back to where one was
});
buttons.forEach((button, index) => {
  button.tabIndex = -1;
  button.addEventListener("click", () => { goTo(index); enlarge(); });
});
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
byId("close").addEventListener("click", () => large.close());
large.addEventListener("close", () => buttons[current].focus());
byId("search").addEventListener("input", update);
for (const choice of document.querySelectorAll("input[name=kind]")) choice.addEventListener("change", update);
byId("level").addEventListener("input", () => goToSlice(Number(byId("level").value) - 1));
byId("slice").addEventListener("wheel", (event) => { event.preventDefault(); goToSlice(slices.level - Math.sign(event.deltaY)); }, { passive: false });
if (rows.length) {
  makeBars("histogram");
  if (byId("usual")) makeBars("usual");
  for (const button of document.querySelectorAll("#offers button")) button.addEventListener("click", () => moveTo(Number(button.dataset.threshold)));
  slider.addEventListener("input", () => { setThreshold(Number(scoreAt(Number(slider.value)).toPrecision(6))); number.value = threshold; });
  number.addEventListener("input", () => {
    if (number.value === "" || !Number.isFinite(number.valueAsNumber)) return;  // a number that is being typed
    setThreshold(number.valueAsNumber);
    slider.value = placeOf(threshold);
  });
  byId("reset").addEventListener("click", () => moveTo(data.threshold));
}
update();
