"use strict";
// What works without it: everything but the theme's button, the search, other seeds' pictures and the enlarged one.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const one = (selector, within = document) => within.querySelector(selector);

// Each picture stands in the page once: as the image that shows it first, or in this table.
const pictures = JSON.parse(one("#pictures").textContent);
for (const image of all("img[data-picture][src]")) pictures[image.dataset.picture] = image.src;
for (const image of all("img[data-picture]:not([src])")) image.src = pictures[image.dataset.picture];

const theme = one("#theme");
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const pressed = () => theme.setAttribute("aria-pressed", String(dark()));
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  pressed();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", pressed);
theme.hidden = false;
pressed();

for (const grid of all("[data-grid]")) {
  const lines = all(".prompts > li", grid);
  const search = one("input", grid);
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const line of lines) line.hidden = !words.every((word) => line.dataset.text.includes(word));
    one(".count", grid).textContent = `${lines.filter((line) => !line.hidden).length} of ${lines.length} prompts`;
  };
  search.addEventListener("input", find);
  for (const select of all("select", grid)) {
    const choose = () => {
      for (const figure of all(`figure[data-column="${select.dataset.column}"]`, grid)) show(figure, Number(select.value));
    };
    select.addEventListener("change", choose);
    choose(); // a browser may remember another choice
  }
  one(".tools", grid).hidden = false;
  find();
}

function show(figure, seed) {
  const found = JSON.parse(figure.dataset.seeds).find((each) => each.seed === seed);
  figure.hidden = !found;
  if (!found) return;
  const image = one("img", figure);
  image.src = pictures[found.picture];
  image.alt = image.alt.replace(/, seed \d+(?=: )/, `, seed ${seed}`);
  one(".seed", figure).textContent = `, seed ${seed}`;
  one(".note", figure).textContent = found.scores.join("\n");
}

const large = one("#large");
let shown = null;
function enlarge(figure) {
  shown = figure;
  const image = one("img", figure);
  const target = one("img", large);
  target.src = image.src;
  target.alt = image.alt;
  target.className = image.className;
  one("#large-who").textContent = one(".who", figure).textContent;
  one(".scores", large).textContent = one(".note", figure).textContent.replaceAll("\n", " · ");
  const prompt = one(".prompt", figure.closest("li"));
  one(".prompt", large).textContent = (one(".full", prompt) ?? prompt).textContent;
  const [before, after] = neighbours();
  one(".before", large).disabled = !before;
  one(".after", large).disabled = !after;
}
function neighbours() {
  const beside = all("figure", shown.closest(".strip")).filter((figure) => !figure.hidden);
  const place = beside.indexOf(shown);
  return [beside[place - 1], beside[place + 1]];
}
function walk(step) {
  const next = neighbours()[step < 0 ? 0 : 1];
  if (next) enlarge(next);
}
for (const button of all(".enlarge")) {
  button.addEventListener("click", () => {
    enlarge(button.closest("figure"));
    large.showModal();
  });
}
one(".close", large).addEventListener("click", () => large.close());
one(".before", large).addEventListener("click", () => walk(-1));
one(".after", large).addEventListener("click", () => walk(1));
large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
large.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") walk(-1);
  else if (event.key === "ArrowRight") walk(1);
  else return;
  event.preventDefault();
});
