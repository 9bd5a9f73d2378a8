// The part "Config": every key of the run, what differs from another run, and how it was launched.
"use strict";

function configPart() {
  const run = detailRun();
  if (run.config.length === 0 && run.launch.length === 0)
    return [runNote(), emptyPart("The run's config.yaml cannot be read, or is not there.")];
  const others = report.runs.filter((other) => other !== run);
  if (!others.some(({ label }) => label === chosen.compareTo))
    chosen.compareTo = others.length ? others[0].label : null;
  const body = make("div", { class: "config" });
  const fill = () => replaceChildren(body, configSections(run));
  fill();
  return [
    runNote(),
    configControls(others, fill),
    body,
    run.launch.map(([name, text]) =>
      folded(`launch ${name}`, quoted(name), () => make("pre", {}, text)),
    ),
  ];
}

function configControls(others, fill) {
  const search = make("input", {
    type: "search",
    id: "search",
    placeholder: "Search keys and values",
    "aria-label": "Search keys and values",
    value: chosen.search,
    on: {
      input: () => {
        chosen.search = search.value;
        fill();
      },
    },
  });
  if (others.length === 0) return make("div", { class: "controls" }, search);
  const select = make(
    "select",
    {
      on: {
        change: () => {
          chosen.compareTo = select.value;
          fill();
        },
      },
    },
    others.map(({ label }) =>
      make("option", { value: label, selected: label === chosen.compareTo }, label),
    ),
  );
  const only = make("input", {
    type: "checkbox",
    id: "only-different",
    checked: chosen.onlyDifferent,
    on: {
      change: () => {
        chosen.onlyDifferent = only.checked;
        fill();
      },
    },
  });
  return make(
    "div",
    { class: "controls" },
    search,
    make("label", { class: "group" }, "Compare with", select),
    make("label", { class: "group" }, only, "Only what differs"),
  );
}

function configSections(run) {
  const other = report.runs.find(({ label }) => label === chosen.compareTo);
  const own = new Map(run.config),
    theirs = other ? new Map(other.config) : own;
  const wanted = chosen.search.toLowerCase();
  const sections = new Map();
  for (const key of new Set([...own.keys(), ...theirs.keys()])) {
    const value = own.get(key),
      otherValue = theirs.get(key);
    const differs = value !== otherValue;
    if (chosen.onlyDifferent && other && !differs) continue;
    if (
      !`${key} ${value ?? ""} ${differs ? (otherValue ?? "") : ""}`.toLowerCase().includes(wanted)
    )
      continue;
    const section = key.split(".")[0];
    if (!sections.has(section)) sections.set(section, []);
    sections.get(section).push({ key, value, otherValue, differs });
  }
  if (sections.size === 0) return [emptyPart("No key has this.")];
  const searching = wanted !== "" || (chosen.onlyDifferent && other);
  return [...sections].map(([section, keys]) => {
    const count = keys.filter(({ differs }) => differs).length;
    const summary = [
      quoted(section),
      make(
        "span",
        { class: "hint" },
        ` ${counted(keys.length, "key")}${count ? `, ${count} different` : ""}`,
      ),
    ];
    const fill = () =>
      make(
        "dl",
        { class: "keys" },
        keys.map((key) => keyRow(key, other)),
      );
    // What a search finds is open, whatever was folded before.
    return searching
      ? make("details", { open: true }, make("summary", {}, summary), fill())
      : folded(`config ${section}`, summary, fill, count > 0);
  });
}

function keyRow({ key, value, otherValue, differs }, other) {
  const known = (text) => (text === undefined ? make("em", {}, "not there") : quoted(text));
  return make(
    "div",
    { class: differs ? "different" : null },
    make("dt", {}, quoted(key)),
    make(
      "dd",
      {},
      known(value),
      differs
        ? make("span", { class: "other" }, quoted(other.label), ": ", known(otherValue))
        : null,
    ),
  );
}
