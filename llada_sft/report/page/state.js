// What the page knows: the data of the runs, and what its reader has chosen. The choices survive
// when newer data arrive.
"use strict";

let report = JSON.parse(document.getElementById("data").textContent);

const chosen = {
  tab: "curves",
  zoom: null, // [first, last] step; null: all
  logLoss: false,
  smoothing: 0.6,
  hidden: new Set(), // labels of runs
  switchedOff: new Set(), // "chart title/series label"
  run: 0, // whose details are shown
  open: new Set(), // of folded parts
  answersStep: null, // null: the last one
  pass: null, // null: the finished answers
  search: "",
  compareTo: null, // another run; null: none
  onlyDifferent: false,
};

// Okabe and Ito's colours: they differ for every kind of colour vision.
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const LEVELS = ["--l1", "--l2", "--l3", "--l4", "--l5", "--l6", "--l7", "--l8"];
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

/** Return the present value of a colour of page.css; canvases do not know its variables. */
function colour(name) {
  probe.style.setProperty("color", `var(${name})`);
  return getComputedStyle(probe).color;
}

function runColour(number) {
  return COLOURS[number % COLOURS.length];
}

function detailRun() {
  return report.runs[Math.min(chosen.run, report.runs.length - 1)];
}

function shownRuns() {
  return report.runs.filter((run) => !chosen.hidden.has(run.label));
}

function seriesOf(run) {
  return run.curves ? run.curves.series : {};
}

/** Return the last logged [step, number] of a column; null if there is none. */
function lastOf(run, column) {
  const last = run.curves && run.curves.last[column];
  return last ? [last[0], Number(last[1])] : null;
}

/** Return the first and the last step of all runs that are shown. */
function allSteps() {
  let first = Infinity,
    last = -Infinity;
  for (const run of shownRuns()) {
    for (const { x } of Object.values(seriesOf(run))) {
      first = Math.min(first, x[0]);
      last = Math.max(last, x[x.length - 1]);
    }
  }
  if (first > last) return [0, 1];
  return first === last ? [first - 1, last + 1] : [first, last];
}

/** A folded part that stays as its reader left it. */
function folded(key, summary, fill, openAtFirst = false) {
  const body = make("div", { class: "folded" });
  const isOpen = chosen.open.has(key) || (openAtFirst && !chosen.open.has(`-${key}`));
  const details = make("details", { open: isOpen }, make("summary", {}, summary), body);
  const fillOnce = () => {
    if (details.open && !body.firstChild) add(body, fill());
  };
  details.addEventListener("toggle", () => {
    chosen.open.delete(details.open ? `-${key}` : key);
    chosen.open.add(details.open ? key : `-${key}`);
    fillOnce();
  });
  fillOnce();
  return details;
}
