// The part "Curves": what metrics.csv has of each step.
"use strict";

const GIGABYTES = (value) =>
  value === null || value === undefined ? "–" : `${Number(value.toPrecision(4))} GB`;

// Each chart names its columns; those that a run does not have are skipped.
const CURVES = [
  {
    title: "Loss",
    wide: true,
    log: true,
    hint: "In nats, of the training steps and of the held-out rows; faint: as logged, not smoothed.",
    columns: [
      ["loss", "training", { smooth: true }],
      ["validation_loss", "validation", { points: true }],
    ],
    more: /^validation\/(.+)\/loss$/,
  },
  {
    title: "Learning rate",
    hint: "Of the optimizer.",
    columns: [["lr", "learning rate"]],
  },
  {
    title: "Gradient norm",
    hint: "Before it is clipped.",
    log: true,
    columns: [["gradient_norm", "gradient norm", { smooth: true }]],
  },
  {
    title: "Throughput",
    hint: "Tokens per second on all ranks; all: with padding.",
    columns: [
      ["tokens_per_s", "tokens/s"],
      ["all_tokens_per_s", "all tokens/s"],
    ],
  },
  {
    title: "MFU",
    hint: "Model FLOP/s utilization: needed operations, of what the GPUs could do.",
    format: percent,
    columns: [["mfu", "MFU"]],
  },
  {
    title: "Memory",
    hint: "The most that a rank had so far.",
    format: GIGABYTES,
    columns: [
      ["gpu_gb", "GPU"],
      ["resident_gb", "host"],
    ],
  },
  {
    title: "Waiting and balance",
    hint: "Time spent waiting for data; the mean work of the ranks, of the busiest one's.",
    format: percent,
    columns: [
      ["data_wait", "waiting for data"],
      ["balance", "balance"],
    ],
  },
  {
    title: "Validation accuracy",
    hint: "Of the masked tokens.",
    format: percent,
    columns: [["validation/accuracy", "accuracy", { points: true }]],
    more: /^validation\/(.+)\/accuracy$/,
  },
  {
    title: "Validation bound",
    hint: "Upper bound of the negative log-likelihood, nats per response token.",
    columns: [["validation/bound", "bound", { points: true }]],
    more: /^validation\/(.+)\/bound$/,
  },
  { title: "Training by noise level", levels: /^loss_level_(\d)$/ },
  {
    title: "Validation by noise level",
    levels: /^validation\/(?:.+\/)?loss_level_(\d)$/,
    points: true,
  },
];
// Shown in the part "Data", or of no use as a curve.
const ELSEWHERE = [
  /^(share|epoch)_/,
  /^(rows|bad_rows|left_out_rows|too_long|skipped_steps|fill)$/,
  /^(tokens|all_tokens|tokens_per_row)$/,
  /^validation\/(.+\/)?(rows|tokens)$/,
];

function attemptMarks(run) {
  const attempts = run.timeline ? run.timeline.attempts : [];
  return attempts
    .slice(1)
    .filter((attempt) => attempt.first_step !== null)
    .map((attempt) => ({ step: attempt.first_step, text: `attempt ${attempt.number}` }));
}

/** Return [column, label, options] of a chart that a run has. */
function columnsOf(chart, run) {
  const series = seriesOf(run);
  const found = chart.columns.filter(([column]) => column in series);
  if (chart.more) {
    for (const column of Object.keys(series)) {
      const match = chart.more.exec(column);
      if (match) found.push([column, `validation ${match[1]}`, { points: true }]);
    }
  }
  return found;
}

/** Return the lines of a chart: colours are of runs where there are several, else of columns. */
function linesOf(chart) {
  const several = report.runs.length > 1;
  return shownRuns().flatMap((run) =>
    columnsOf(chart, run).map(([column, label, options], number) => ({
      ...seriesOf(run)[column],
      ...options,
      label: several ? `${run.label}: ${label}` : label,
      colour: several ? runColour(report.runs.indexOf(run)) : runColour(number),
      dash: several ? DASHES[number % DASHES.length] : [],
    })),
  );
}

function levelCards(chart) {
  const run = detailRun();
  const sets = new Map();
  for (const column of Object.keys(seriesOf(run))) {
    const match = chart.levels.exec(column);
    if (!match) continue;
    const set = column.slice(0, column.lastIndexOf("loss_level_"));
    if (!sets.has(set)) sets.set(set, []);
    sets.get(set).push([Number(match[1]), column]);
  }
  return [...sets].map(([set, columns]) => {
    const name = set.replace(/^validation\//, "").replace(/\/$/, "");
    const lines = columns
      .sort(([a], [b]) => a - b)
      .map(([level, column]) => ({
        ...seriesOf(run)[column],
        label: `${(level - 1) * 12.5}–${level * 12.5} % masked`,
        colour: LEVELS[level - 1],
        dash: [],
        smooth: !chart.points,
        points: chart.points,
      }));
    return chartCard({
      title: name ? `${chart.title}: ${name}` : chart.title,
      hint: `Cross-entropy of masked tokens in nats, by how much of the answer is masked${ofRun()}.`,
      log: chosen.logLoss,
      marks: attemptMarks(run),
      lines,
    });
  });
}

/** Name the run whose details are shown, where there are several. */
function ofRun() {
  return report.runs.length > 1 ? `; of ${visible(detailRun().label)}` : "";
}

function curveCard(chart) {
  const lines = linesOf(chart);
  if (lines.length === 0) return null;
  const marks = shownRuns().length === 1 ? attemptMarks(shownRuns()[0]) : [];
  return chartCard({ ...chart, log: chart.log && chosen.logLoss, marks, lines });
}

function moreCurves() {
  const known = new Set(CURVES.flatMap((chart) => (chart.columns || []).map(([column]) => column)));
  const patterns = [
    ...ELSEWHERE,
    ...CURVES.flatMap((chart) => [chart.more, chart.levels]).filter(Boolean),
  ];
  const columns = new Set(shownRuns().flatMap((run) => Object.keys(seriesOf(run))));
  const others = [...columns].filter(
    (column) => !known.has(column) && !patterns.some((pattern) => pattern.test(column)),
  );
  if (others.length === 0) return null;
  return folded("more curves", `${counted(others.length, "more column")} of metrics.csv`, () =>
    make(
      "div",
      { class: "grid" },
      others.map((column) => curveCard({ title: column, columns: [[column, column]] })),
    ),
  );
}

/** The last rows with every digit that metrics.csv has. */
function lastRows() {
  const run = detailRun();
  if (!run.curves || run.curves.table.rows.length === 0) return null;
  const { columns, rows } = run.curves.table;
  return folded(
    "last rows",
    `The last ${counted(rows.length, "logged step")}, as metrics.csv has them`,
    () => table("The last logged steps", columns, [...rows].reverse(), "numbers"),
  );
}

function thinnedNote() {
  const thinned = shownRuns()
    .flatMap((run) => Object.values(seriesOf(run)))
    .filter(({ x, logged }) => x.length < logged);
  if (thinned.length === 0) return null;
  const most = Math.max(...thinned.map(({ x }) => x.length)),
    logged = Math.max(...thinned.map((one) => one.logged));
  return make(
    "p",
    { class: "note" },
    `Long curves are thinned: up to ${shown(most)} of ${shown(logged)} points,` +
      " the least and the greatest of each stretch. Each point is a logged one.",
  );
}

function nonfiniteNotes() {
  return shownRuns().flatMap((run) =>
    Object.entries(seriesOf(run))
      .filter(([, one]) => one.num_nonfinite > 0)
      .map(([column, { nonfinite, num_nonfinite: count }]) => {
        const listed = nonfinite
          .map(([step, value]) => `${value} at step ${shown(step)}`)
          .join(", ");
        const more = count > nonfinite.length ? ` and ${shown(count - nonfinite.length)} more` : "";
        return make(
          "p",
          { class: "note warning" },
          quoted(`${report.runs.length > 1 ? `${run.label}: ` : ""}${column}: ${listed}${more}`),
        );
      }),
  );
}

function curvesPart() {
  const cards = CURVES.flatMap((chart) =>
    chart.levels ? levelCards(chart) : [curveCard(chart)],
  ).filter(Boolean);
  if (cards.length === 0) return [emptyPart("No step has been logged yet.")];
  return [
    curveControls(),
    ...nonfiniteNotes(),
    thinnedNote(),
    make("div", { class: "grid" }, cards),
    moreCurves(),
    lastRows(),
  ];
}

function curveControls() {
  const zoomed = make("span", { class: "at", id: "zoomed" }, zoomText());
  const log = make("input", {
    type: "checkbox",
    id: "log",
    checked: chosen.logLoss,
    on: {
      change: () => {
        chosen.logLoss = log.checked;
        showPart();
      },
    },
  });
  const out = make("output", { for: "smoothing" }, String(chosen.smoothing));
  const smoothing = make("input", {
    type: "range",
    id: "smoothing",
    min: 0,
    max: 0.98,
    step: 0.02,
    value: chosen.smoothing,
    on: {
      input: () => {
        out.textContent = smoothing.value;
      },
      change: () => {
        chosen.smoothing = Number(smoothing.value);
        showPart();
      },
    },
  });
  const button = (text, title, act) =>
    make("button", { type: "button", title, "aria-label": title, on: { click: act } }, text);
  return make(
    "div",
    { class: "controls" },
    make(
      "span",
      { class: "group" },
      button("−", "Show more steps", () => zoomBy(2)),
      button("+", "Show fewer steps", () => zoomBy(0.5)),
      button("All steps", "Show all steps", resetZoom),
      zoomed,
    ),
    make("label", { class: "group" }, log, "Logarithmic loss"),
    make("label", { class: "group" }, "Smoothing", smoothing, out),
  );
}

function emptyPart(text) {
  return make("p", { class: "empty" }, text);
}
