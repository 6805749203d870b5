"use strict";
// What the page does by itself: the threshold, its histogram, filters and keys. Texts of the data become text, never HTML.
const byId = (name) => document.getElementById(name);
const data = JSON.parse(byId("data").textContent);
const rows = data.rows;
const cards = [...document.querySelectorAll("#gallery > li")];
const failures = [...document.querySelectorAll("#unreadable li")];
const buttons = cards.map((card) => card.querySelector(".pictures"));
const [slider, number, large] = [byId("slider"), byId("number"), byId("large")];
const [low, high] = slider ? [Number(slider.min), Number(slider.max)] : [0, 1];  // all scores lie between them
const BINS = 60, WIDTH = 600, HEIGHT = 120;  // of the histogram, in units of its viewBox

let threshold = data.threshold;
let current = 0;  // the image that the keys are at
let visible = [];  // numbers of the images that are shown, in their order
let bars = [];  // of the histogram: two for each bin, of all images and, before it, of the abnormal ones

const short = (value) => String(Number(value.toPrecision(6)));
// The verdict at the first threshold is the one that was written down, whatever the rounding of its score.
const isAbnormal = (row) => (threshold === data.threshold ? row.abnormal : row.score >= threshold);

const binOf = (score) => Math.min(BINS - 1, Math.floor((BINS * (score - low)) / (high - low)));

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
}

function makeBars() {
  bars = Array.from({ length: BINS }, (_, bin) => ["all", "abnormal"].map((kind) => {
    const bar = byId("bars").appendChild(document.createElementNS("http://www.w3.org/2000/svg", "rect"));
    set(bar, { class: kind, x: (bin * WIDTH) / BINS, width: WIDTH / BINS - 1 });
    return bar;
  }));
}

function drawHistogram(verdicts) {
  const counts = bars.map(() => [0, 0]);
  rows.forEach((row, index) => {
    const count = counts[binOf(row.score)];
    count[0] += 1;
    count[1] += Number(verdicts[index]);
  });
  const most = Math.max(...counts.map((count) => count[0]));
  counts.forEach((pair, bin) => pair.forEach((count, kind) => {
    const height = count ? Math.max(3, (HEIGHT * count) / most) : 0;  // one among many is seen too
    set(bars[bin][kind], { y: HEIGHT - height, height });
  }));
  const place = (WIDTH * Math.min(Math.max(threshold - low, 0), high - low)) / (high - low);
  set(byId("limit"), { x1: place, x2: place });
  const range = `from ${short(rows[rows.length - 1].score)} to ${short(rows[0].score)}`;
  set(byId("histogram"), { "aria-label": `Histogram of ${rows.length} scores ${range}; threshold at ${short(threshold)}` });
}

function update() {
  const kind = document.querySelector("input[name=kind]:checked").value;
  const words = byId("search").value.trim().toLowerCase();
  const fits = (path, itsKind) => (kind === "all" || kind === itsKind) && path.toLowerCase().includes(words);
  const verdicts = rows.map(isAbnormal), abnormal = verdicts.filter(Boolean).length;
  visible = [];
  rows.forEach((row, index) => {
    const card = cards[index], verdict = verdicts[index];
    if (card.classList.contains("abnormal") !== verdict) {
      card.classList.toggle("abnormal", verdict);
      card.querySelector(".verdict").textContent = data.words[Number(verdict)];
    }
    card.hidden = !fits(row.path, verdict ? "abnormal" : "normal");
    if (!card.hidden) visible.push(index);
  });
  failures.forEach((item, index) => { item.hidden = !fits(data.unreadable[index], "errors"); });
  const failed = failures.filter((item) => !item.hidden).length;
  if (byId("unreadable")) byId("unreadable").hidden = failed === 0;
  const counts = { all: rows.length + failures.length, abnormal, normal: rows.length - abnormal, errors: failures.length };
  for (const [name, count] of Object.entries(counts)) byId(`count-${name}`).textContent = count;
  const at = rows.length ? `, at threshold ${short(threshold)}` : "";
  byId("status").textContent =
    `${data.words[1]}: ${abnormal} of ${rows.length} images${at}. Shown: ${visible.length + failed} of ${counts.all} files.`;
  if (rows.length) drawHistogram(verdicts);
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
  byId("keep").textContent = short(value);
  update();
}

function enlarge() {
  const card = cards[current];
  byId("large-title").textContent = `${current + 1}. ${rows[current].path}`;
  byId("large-pictures").replaceChildren(...[...card.querySelectorAll(".picture")].map((item) => item.cloneNode(true)));
  byId("large-text").replaceChildren(...[...card.querySelectorAll(".text > :not(.path)")].map((item) => item.cloneNode(true)));
  byId("large-text").className = card.className.replace("card", "");
  if (!large.open) large.showModal();
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
if (rows.length) {
  makeBars();
  slider.addEventListener("input", () => { setThreshold(Number(Number(slider.value).toPrecision(6))); number.value = threshold; });
  number.addEventListener("input", () => {
    if (number.value === "" || !Number.isFinite(number.valueAsNumber)) return;  // a number that is being typed
    setThreshold(number.valueAsNumber);
    slider.value = threshold;
  });
  byId("reset").addEventListener("click", () => { setThreshold(data.threshold); slider.value = threshold; number.value = short(threshold); });
}
update();
