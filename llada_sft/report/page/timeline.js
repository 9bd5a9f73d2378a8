// The part "Timeline": the attempts of a run by the clock, and what the journal says of each.
"use strict";

const EVENTS_ON_THE_LINE = {
  checkpoint: "checkpoint",
  signal: "signal",
  warning: "warning",
  failed: "failure",
  nonfinite: "failure",
  damaged: "warning",
};

function timelinePart() {
  const run = detailRun();
  const line = run.timeline;
  if (!line || (line.attempts.length === 0 && line.events.length === 0))
    return [emptyPart("The journal has no entry yet.")];
  const hidden = line.num_attempts - line.attempts.length;
  return [
    runNote(),
    hidden > 0
      ? make(
          "p",
          { class: "note" },
          `The last ${shown(line.attempts.length)} of ${shown(line.num_attempts)} attempts are shown.`,
        )
      : null,
    line.attempts.length
      ? card(
          "Attempts",
          "By the clock; marks are checkpoints, signals, warnings and failures.",
          track(line),
        )
      : null,
    ...[...line.attempts].reverse().map((attempt) => attemptCard(attempt, line)),
    otherEvents(line),
  ];
}

function seconds(time) {
  return new Date(time).getTime() / 1000;
}

/** The attempts as bars; empty where a time is damaged. */
function track(line) {
  const times = line.attempts
    .flatMap(({ start, end }) => [seconds(start), seconds(end)])
    .filter(Number.isFinite);
  const first = Math.min(...times),
    length = Math.max(1, Math.max(...times) - first);
  const place = (time) => Math.min(100, Math.max(0, (100 * (seconds(time) - first)) / length));
  if (times.length === 0) return make("p", { class: "hint" }, "Its times cannot be read.");
  const rows = line.attempts
    .filter(({ start, end }) => Number.isFinite(seconds(start)) && Number.isFinite(seconds(end)))
    .map((attempt) => {
      const lasted = `${clock(attempt.start)} to ${clock(attempt.end)}`;
      const title = `attempt ${attempt.number}: ${attempt.cause || "not ended"}, ${lasted}`;
      const left = place(attempt.start);
      const bar = make("i", {
        class: `attempt ${attempt.kind}`,
        title,
        style: { left: `${left}%`, width: `${place(attempt.end) - left}%` },
      });
      const marks = line.events
        .filter(
          (event) =>
            event.attempt === attempt.number &&
            event.event in EVENTS_ON_THE_LINE &&
            Number.isFinite(seconds(event.time)),
        )
        .map((event) =>
          make("b", {
            class: EVENTS_ON_THE_LINE[event.event],
            title: visible(`${event.event} ${event.text}`.slice(0, 300)),
            style: { left: `${place(event.time)}%` },
          }),
        );
      return [
        make("span", { class: "number" }, attempt.number),
        make("div", { class: "line" }, bar, marks),
      ];
    });
  return [
    make("div", { class: "track" }, rows),
    make(
      "div",
      { class: "ends" },
      make("span", {}, clock(new Date(first * 1000))),
      make("span", {}, duration(length)),
      make("span", {}, clock(new Date((first + length) * 1000))),
    ),
  ];
}

function attemptCard(attempt, line) {
  const steps =
    attempt.first_step === null
      ? "no step"
      : `steps ${shown(attempt.first_step)} to ${shown(attempt.last_step)}`;
  const lasted = seconds(attempt.end) - seconds(attempt.start);
  const where = attempt.nodes ? `on ${attempt.nodes}` : "on this machine, without SLURM";
  const facts = [
    attempt.job_id ? `job ${attempt.job_id}` : null,
    where,
    counted(attempt.world_size, "rank"),
    steps,
    Number.isFinite(lasted) ? duration(lasted) : null,
  ]
    .filter(Boolean)
    .join(" · ");
  const events = line.events.filter((event) => event.attempt === attempt.number);
  return make(
    "section",
    { class: "card attempt-card" },
    make(
      "h2",
      {},
      `Attempt ${attempt.number} `,
      badge(attempt.cause || "running, or ended by force", attempt.kind),
    ),
    make("p", { class: "facts" }, quoted(facts)),
    attempt.detail && attempt.detail !== attempt.error
      ? make("p", {}, quoted(attempt.detail))
      : null,
    attempt.error ? make("pre", { class: "error" }, attempt.error) : null,
    attempt.versions ? make("p", { class: "hint" }, quoted(attempt.versions)) : null,
    folded(
      `attempt ${attempt.number}`,
      `${counted(events.length, "entry", "entries")} of the journal`,
      () => eventTable(events),
    ),
  );
}

function eventTable(events) {
  return table(
    "Entries of the journal",
    ["Time", "Event", "Step", "Details"],
    events.map((event) => [
      clock(event.time),
      event.event,
      event.step === null ? "" : shown(event.step),
      event.text,
    ]),
  );
}

/** Entries that carry no attempt's number: launches, changes. */
function otherEvents(line) {
  const known = new Set(line.attempts.map(({ number }) => number));
  const others = line.events.filter((event) => !known.has(event.attempt));
  const note =
    line.events.length < line.num_events
      ? ` (${shown(line.num_events - line.events.length)} older entries are not shown)`
      : "";
  if (others.length === 0 && note === "") return null;
  return folded(
    "other events",
    `${counted(others.length, "other entry", "other entries")} of the journal${note}`,
    () => eventTable(others),
  );
}

/** A word in a colour; the word says it as well. */
function badge(word, kind) {
  return make("span", { class: `badge ${kind}` }, quoted(word));
}
