"use strict";

const each = (selector, act, within = document) => within.querySelectorAll(selector).forEach(act);

// Tables: a click on a heading sorts, best first; the next one turns the order, the third gives back the first one.
const number = (cell) => {
  const text = cell.textContent.replace(/,/g, "");
  return /^[-+]?[\d.]/.test(text) ? parseFloat(text) : NaN;
};

const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return x - y;
};

function sort(heading, button) {
  const table = heading.closest("table");
  const body = table.tBodies[0];
  const place = heading.cellIndex;
  const first = button.dataset.better === "high" ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const now = heading.getAttribute("aria-sort");
  const next = now === first ? second : now === second ? null : first;
  each("th[aria-sort]", (other) => other.removeAttribute("aria-sort"), table);
  const rows = [...body.rows];
  const values = rows.map((row) => row.cells[place]);
  const words = values.every((cell) => Number.isNaN(number(cell)));
  const sign = next === "descending" ? -1 : 1;
  rows.sort((r, s) => {
    if (next === null) return r.dataset.place - s.dataset.place;
    const [a, b] = [r.cells[place], s.cells[place]];
    if (words) return sign * a.textContent.localeCompare(b.textContent);
    return Number.isNaN(number(a)) || Number.isNaN(number(b)) ? compare(a, b) : sign * compare(a, b);
  });
  if (next !== null) heading.setAttribute("aria-sort", next);
  body.append(...rows);
}

each("tbody", (body) => [...body.rows].forEach((row, place) => { row.dataset.place = place; }));
each("thead th", (heading) => {
  const button = heading.querySelector("button");
  button.addEventListener("click", () => sort(heading, button));
});

// Legends: a click hides or shows what an entry stands for.
each(".keys button", (key) => key.addEventListener("click", () => {
  const shown = key.getAttribute("aria-pressed") === "true";
  key.setAttribute("aria-pressed", String(!shown));
  each(`.${key.dataset.series}`, (shape) => shape.classList.toggle("off", shown), key.closest("figure"));
}));

// Theme: the system's until the button is pressed.
const theme = document.getElementById("theme");
const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.hidden = false;
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  name();
});
name();

// On paper all is unfolded.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
