// The part "Data": what became of the rows, and what the batches are made of.
"use strict";

const DATA_CHARTS = [
  {
    title: "Rows that are not trained on",
    hint: "In each logged interval, of all ranks.",
    columns: [
      ["bad_rows", "bad"],
      ["too_long", "too long"],
      ["left_out_rows", "dropped"],
    ],
  },
  {
    title: "Length",
    hint: "Tokens of a row that was read: the mean of each logged interval.",
    columns: [["tokens_per_row", "tokens per row"]],
  },
  {
    title: "Fill",
    hint: "Tokens of rows among all that the network ran on; the rest is padding.",
    format: percent,
    columns: [["fill", "fill"]],
  },
  {
    title: "Epoch",
    hint: "How much of the epoch is read.",
    format: percent,
    columns: [["epoch_progress", "of the epoch"]],
  },
];

function tiles(pairs) {
  return make(
    "dl",
    { class: "tiles" },
    pairs
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

function dataPart() {
  const run = detailRun();
  const sums = run.curves ? run.curves.sums : {};
  const count = (name) => (name in sums ? shown(sums[name]) : undefined);
  const counted = tiles([
    ["Rows read", count("rows")],
    ["Tokens", count("tokens")],
    ["Bad", count("bad_rows")],
    ["Too long", count("too_long")],
    ["Dropped or not learned", count("left_out_rows")],
    ["Skipped steps", count("skipped_steps")],
  ]);
  const only = { ...run };
  const charts = [
    mixtureCard(
      only,
      /^share_(.+)$/,
      "Mixture",
      "Share of each source in what was trained on.",
      percent,
    ),
    ...DATA_CHARTS.map((chart) => dataCard(chart, only)),
    mixtureCard(
      only,
      /^epoch_(?!progress)(.+)$/,
      "Epoch of each source",
      "On rank 0, from 0.",
      shown,
    ),
  ].filter(Boolean);
  const bad = badRows(run);
  if (charts.length === 0 && bad.length === 0) return [emptyPart("No row has been logged yet.")];
  return [
    runNote(),
    make(
      "p",
      { class: "hint" },
      "Counts cover the logged steps that are in metrics.csv; the quarantine has each bad row once.",
    ),
    counted,
    ...bad,
    make("div", { class: "grid" }, charts),
  ];
}

function runNote() {
  return report.runs.length > 1
    ? make("p", { class: "note" }, "Of the run ", quoted(detailRun().label), ".")
    : null;
}

function dataCard(chart, run) {
  const lines = columnsOf(chart, run).map(([column, label], number) => ({
    ...seriesOf(run)[column],
    label,
    colour: runColour(number),
    dash: [],
  }));
  return lines.length ? chartCard({ ...chart, marks: attemptMarks(run), lines }) : null;
}

function mixtureCard(run, pattern, title, hint, format) {
  const columns = Object.keys(seriesOf(run)).filter((column) => pattern.test(column));
  const lines = columns.map((column, number) => ({
    ...seriesOf(run)[column],
    label: pattern.exec(column)[1],
    colour: runColour(number),
    dash: DASHES[Math.floor(number / COLOURS.length) % DASHES.length],
  }));
  return lines.length ? chartCard({ title, hint, format, marks: attemptMarks(run), lines }) : null;
}

function badRows(run) {
  const found = run.bad_rows;
  if (!found || found.total === 0) return [];
  const shownRows = found.rows.map(([file, line, reason, message]) => [
    `${file}:${line}`,
    reason,
    message,
  ]);
  return [
    make(
      "div",
      { class: "grid" },
      card(
        `${counted(found.total, "bad row")}, by reason`,
        "Each row once, from quarantine/.",
        bars(found.reasons, found.total),
      ),
      card("By file", null, bars(found.files, found.total)),
    ),
    folded("bad rows", `${found.rows.length} of ${counted(found.total, "bad row")}`, () =>
      table("Bad rows", ["Place", "Reason", "Message"], shownRows),
    ),
  ];
}

function bars(counts, total) {
  return make(
    "ul",
    { class: "bars" },
    counts.map(([name, count]) =>
      make(
        "li",
        {},
        make("span", { class: "name" }, quoted(name)),
        make("span", { class: "value" }, shown(count)),
        make("i", { class: "bar", style: { "--part": `${(100 * count) / total}%` } }),
      ),
    ),
  );
}
