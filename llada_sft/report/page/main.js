// The page around its parts: the head, the tabs, the choice of runs, and newer data while it is served.
"use strict";

const PARTS = {
  curves: ["Curves", curvesPart],
  data: ["Data", dataPart],
  timeline: ["Timeline", timelinePart],
  answers: ["Answers", answersPart],
  config: ["Config", configPart],
};
const THEMES = ["auto", "light", "dark"];
const REFRESH_S = 5;

function showHead() {
  const run = detailRun();
  document.title = `${visible(run.label)} · llada-sft report`;
  const step = lastStep(run);
  replaceChildren(
    document.getElementById("head"),
    make(
      "div",
      { class: "title" },
      make("h1", {}, quoted(run.label)),
      badge(run.state.word, run.state.kind),
      themeButton(),
    ),
    run.state.detail ? make("p", { class: "detail" }, quoted(run.state.detail)) : null,
    tiles([
      [
        "Step",
        step === null
          ? "–"
          : `${shown(step)}${run.total_steps ? ` of ${shown(run.total_steps)}` : ""}`,
      ],
      ["Loss", lastShown(run, "loss")],
      ["Validation loss", lastShown(run, "validation_loss")],
      ["Tokens/s", lastShown(run, "tokens_per_s")],
      ["MFU", lastShown(run, "mfu", percent)],
      ["GPU memory", lastShown(run, "gpu_gb", GIGABYTES)],
      ["Bad rows", run.bad_rows && run.bad_rows.total ? shown(run.bad_rows.total) : undefined],
    ]),
    progressBar(step, run.total_steps),
    runChoice(),
    problems(),
  );
}

function lastStep(run) {
  const last = run.curves ? Object.values(run.curves.last).map(([step]) => step) : [];
  return last.length ? Math.max(...last) : null;
}

function lastShown(run, column, format = shown) {
  const last = lastOf(run, column);
  return last === null ? undefined : format(last[1]);
}

function progressBar(step, total) {
  if (step === null || !total || step > total) return null;
  return make("progress", { max: total, value: step, "aria-label": "Steps of the training" });
}

/** With several runs: which are drawn, and whose details the other parts show. */
function runChoice() {
  if (report.runs.length === 1) return null;
  const chips = report.runs.map((run, number) => {
    const toggle = make(
      "button",
      {
        type: "button",
        class: "chip",
        "aria-pressed": !chosen.hidden.has(run.label),
        title: "Draw its curves, or not",
        on: {
          click: () => {
            if (!chosen.hidden.delete(run.label)) chosen.hidden.add(run.label);
            showAll();
          },
        },
      },
      make("i", { class: "swatch", style: { "--swatch": `var(${runColour(number)})` } }),
      quoted(run.label, "name"),
    );
    return toggle;
  });
  const select = make(
    "select",
    {
      id: "run",
      on: {
        change: () => {
          chosen.run = Number(select.value);
          showAll();
          document.getElementById("run").focus();
        },
      },
    },
    report.runs.map((run, number) =>
      make("option", { value: number, selected: number === chosen.run }, run.label),
    ),
  );
  return make(
    "div",
    { class: "controls" },
    make("span", { class: "group chips" }, chips),
    make("label", { class: "group" }, "Details of", select),
  );
}

/** What of the runs' files could not be read. */
function problems() {
  const lines = report.runs.flatMap((run) =>
    run.problems.map((line) => (report.runs.length > 1 ? `${run.label}: ${line}` : line)),
  );
  return lines.length
    ? make(
        "ul",
        { class: "problems", "aria-label": "What could not be read" },
        lines.map((line) => make("li", {}, quoted(line))),
      )
    : null;
}

function themeButton() {
  const name = () => document.documentElement.dataset.theme || "auto";
  const button = make(
    "button",
    {
      type: "button",
      class: "theme",
      on: {
        click: () => {
          setTheme(THEMES[(THEMES.indexOf(name()) + 1) % THEMES.length]);
          button.textContent = `Theme: ${name()}`;
          showPart();
        },
      },
    },
    `Theme: ${name()}`,
  );
  return button;
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  // A page may not be allowed to keep anything: then the choice is for now.
  try {
    localStorage.setItem("llada-sft-theme", theme);
  } catch {
    return;
  }
}

function storedTheme() {
  try {
    return localStorage.getItem("llada-sft-theme");
  } catch {
    return null;
  }
}

function showTabs() {
  const tabs = Object.entries(PARTS).map(([key, [name]]) =>
    make(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${key}`,
        "aria-controls": "main",
        "aria-selected": String(key === chosen.tab),
        tabindex: key === chosen.tab ? 0 : -1,
        on: { click: () => showTab(key), keydown: (event) => moveTab(event, key) },
      },
      name,
    ),
  );
  replaceChildren(document.getElementById("tabs"), tabs);
}

function moveTab(event, key) {
  const keys = Object.keys(PARTS),
    by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  showTab(keys[(keys.indexOf(key) + by + keys.length) % keys.length]);
  document.getElementById(`tab-${chosen.tab}`).focus();
}

function showTab(key) {
  chosen.tab = key in PARTS ? key : "curves";
  history.replaceState(null, "", `#${chosen.tab}`);
  showTabs();
  showPart();
}

function showPart() {
  const main = document.getElementById("main");
  const { scrollX, scrollY } = window;
  main.style.setProperty("min-height", `${main.offsetHeight}px`);
  removeCharts();
  main.setAttribute("role", "tabpanel");
  main.setAttribute("aria-labelledby", `tab-${chosen.tab}`);
  replaceChildren(main, PARTS[chosen.tab][1]());
  // Charts are drawn in a microtask; before, the page is too short for its place.
  setTimeout(() => {
    main.style.removeProperty("min-height");
    window.scrollTo(scrollX, scrollY);
  });
}

function showAll() {
  showHead();
  showTabs();
  showPart();
  showFoot();
}

function showFoot() {
  const when = report.live
    ? `read at ${clock(new Date())}, again every ${REFRESH_S} s`
    : `written at ${clock(report.written)}`;
  replaceChildren(
    document.getElementById("foot"),
    report.runs.map((run) => make("p", {}, quoted(run.path))),
    make("p", {}, `llada-sft ${report.version} · ${when} · charts: uPlot, MIT licence`),
  );
}

// While it is served: ask for newer data, but change nothing under the hand of the reader.
let tag = null,
  pressed = false,
  lost = false;

async function refresh() {
  if (document.hidden || pressed) return;
  try {
    const answer = await fetch("data.json", {
      headers: tag ? { "If-None-Match": tag } : {},
      cache: "no-store",
    });
    if (lost) showFoot();
    lost = false;
    if (answer.status !== 200) return;
    const newer = await answer.json();
    const first = tag === null;
    tag = answer.headers.get("ETag");
    if (pressed || (first && JSON.stringify(newer) === JSON.stringify(report))) return;
    report = newer;
    update();
  } catch {
    lost = true;
    replaceChildren(
      document.getElementById("foot"),
      make(
        "p",
        { class: "warning" },
        "The server of this page has ended; what is shown is the last that it sent.",
      ),
    );
  }
}

/** Show newer data; what a reader types or slides stays in its place. */
function update() {
  const focused = document.activeElement;
  const { id } = focused;
  const typing = id === "search" ? [focused.selectionStart, focused.selectionEnd] : null;
  showAll();
  const again = id ? document.getElementById(id) : null;
  if (again) again.focus({ preventScroll: true });
  if (again && typing) again.setSelectionRange(...typing);
}

function start() {
  setTheme(storedTheme() || "auto");
  chosen.tab = location.hash.slice(1) in PARTS ? location.hash.slice(1) : "curves";
  showAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showPart);
  if (!report.live) return;
  addEventListener("pointerdown", () => {
    pressed = true;
  });
  for (const event of ["pointerup", "pointercancel"])
    addEventListener(event, () => {
      pressed = false;
    });
  setInterval(refresh, REFRESH_S * 1000);
}

start();
