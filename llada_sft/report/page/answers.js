// The part "Answers": held-out prompts at each validation, and in which order tokens were written.
"use strict";

function answersPart() {
  const run = detailRun();
  const steps = run.answers ? run.answers.steps : [];
  if (steps.length === 0)
    return [
      runNote(),
      emptyPart(
        "No answers were logged. With validation.answers: 8, eight held-out prompts are answered at each validation.",
      ),
    ];
  const place = answersPlace(steps);
  const { step, answers } = steps[place];
  const hidden = run.answers.num_steps - steps.length;
  const body = make("div", { class: "answers" });
  const fill = () =>
    replaceChildren(
      body,
      answers.map((answer) => answerCard(answer)),
    );
  fill();
  return [
    runNote(),
    make("div", { class: "controls" }, stepControl(steps, place), passControl(answers, fill)),
    hidden > 0
      ? make(
          "p",
          { class: "note" },
          `${shown(steps.length)} of ${shown(run.answers.num_steps)} validations are shown.`,
        )
      : null,
    make(
      "p",
      { class: "hint" },
      `Answers of step ${shown(step)}.`,
      answers.some(({ tokens }) => tokens) ? scale() : " The order of writing was not logged.",
    ),
    body,
  ];
}

/** Return the place of the chosen step, or of the one before it. */
function answersPlace(steps) {
  if (chosen.answersStep === null) return steps.length - 1;
  const after = steps.findIndex(({ step }) => step > chosen.answersStep);
  return after === -1 ? steps.length - 1 : Math.max(0, after - 1);
}

function stepControl(steps, place) {
  const choose = (next) => {
    const last = next >= steps.length - 1;
    chosen.answersStep = last ? null : steps[Math.max(0, next)].step;
    showPart();
    document.getElementById("answers-step").focus();
  };
  const slider = make("input", {
    type: "range",
    id: "answers-step",
    min: 0,
    max: steps.length - 1,
    step: 1,
    value: place,
    "aria-valuetext": `step ${steps[place].step}`,
    on: {
      change: () => choose(Number(slider.value)),
      input: () => {
        out.textContent = shown(steps[slider.value].step);
      },
    },
  });
  const out = make("output", { for: "answers-step" }, shown(steps[place].step));
  return make("label", { class: "group" }, "Step", slider, out);
}

/** A slider over the passes: what the answers looked like after each of them. */
function passControl(answers, fill) {
  const most = Math.max(0, ...answers.map((answer) => answer.num_passes || 0));
  if (most === 0) return null;
  const say = () =>
    chosen.pass === null || chosen.pass >= most ? "finished" : `${chosen.pass} of ${most}`;
  const out = make("output", { for: "answers-pass" }, say());
  const slider = make("input", {
    type: "range",
    id: "answers-pass",
    min: 0,
    max: most,
    step: 1,
    value: Math.min(chosen.pass ?? most, most),
    on: {
      input: () => {
        const pass = Number(slider.value);
        chosen.pass = pass >= most ? null : pass;
        out.textContent = say();
        fill();
      },
    },
  });
  return make("label", { class: "group" }, "After pass", slider, out);
}

function scale() {
  return make(
    "span",
    { class: "scale" },
    " Written in the first pass ",
    make("i", { class: "ramp" }),
    " in the last pass.",
  );
}

function answerCard(answer) {
  const right = answer.answer.trim() === answer.reference.trim();
  const passes = answer.num_passes ? ` · ${shown(answer.num_passes)} passes` : "";
  return make(
    "section",
    { class: "card answer" },
    make(
      "p",
      { class: "hint" },
      quoted(`${answer.set ? `${answer.set} · ` : ""}${answer.row}${passes}`),
      right ? badge("same as the reference", "good") : null,
    ),
    part("Prompt", make("pre", { dir: "auto" }, withSpecialTokens(answer.prompt))),
    part("Reference", make("pre", { dir: "auto" }, answer.reference)),
    part(
      "Answer",
      answer.tokens
        ? colouredAnswer(answer)
        : make("pre", { dir: "auto", class: "plain" }, answer.answer),
    ),
  );
}

/** A text with its special tokens less prominent, and without the empty lines at its end. */
function withSpecialTokens(text) {
  const pieces = text.trimEnd().split(/(<\|[^|<>]{1,40}\|>)/);
  return pieces.map((piece, number) =>
    number % 2 ? make("span", { class: "special" }, piece) : piece,
  );
}

function part(name, content) {
  return make("div", { class: "part" }, make("h3", {}, name), content);
}

function colouredAnswer({ tokens, num_passes: passes }) {
  const until = chosen.pass ?? Infinity;
  return make(
    "pre",
    { dir: "auto", class: "coloured" },
    tokens.map(([text, pass]) => {
      if (pass > until)
        return make(
          "span",
          { class: "masked", title: `pass ${pass} of ${passes}` },
          text.replace(/[^\n]/gu, "░"),
        );
      const part = passes > 1 ? (pass - 1) / (passes - 1) : 0;
      return make(
        "span",
        {
          class: "token",
          title: `pass ${pass} of ${passes}`,
          style: { "--part": `${Math.round(100 * part)}%` },
        },
        text,
      );
    }),
  );
}
