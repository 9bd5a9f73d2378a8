// Charts over steps. All of them share one zoom and one cursor.
"use strict";

const charts = new Set();
const HEIGHT = 240;

/** The weighted mean of a value and those before it, without a bias towards the first ones. */
function smoothed(y, weight) {
  let sum = 0,
    weights = 0;
  return y.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value;
    weights = weights * weight + 1;
    return sum / weights;
  });
}

/** Return the place of the step that is nearest to another one. */
function nearest(x, step) {
  let low = 0,
    high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] < step) low = middle;
    else high = middle;
  }
  return step - x[low] <= x[high] - step ? low : high;
}

function zoomTo(first, last) {
  const [lowest, highest] = allSteps();
  const from = Math.max(lowest, first),
    to = Math.min(highest, last);
  chosen.zoom = to - from < 1e-9 || (from <= lowest && to >= highest) ? null : [from, to];
  const [min, max] = chosen.zoom || [lowest, highest];
  for (const chart of charts) chart.setScale("x", { min, max });
  document.getElementById("zoomed")?.replaceChildren(zoomText());
}

function zoomText() {
  const [first, last] = chosen.zoom || allSteps();
  return `steps ${shown(Math.ceil(first))} to ${shown(Math.floor(last))}`;
}

/** Show fewer (factor below 1) or more steps around the middle. */
function zoomBy(factor) {
  const [first, last] = chosen.zoom || allSteps();
  const middle = (first + last) / 2,
    half = ((last - first) / 2) * factor;
  zoomTo(middle - half, middle + half);
}

function resetZoom() {
  zoomTo(-Infinity, Infinity);
}

function removeCharts() {
  for (const chart of charts) chart.destroy();
  charts.clear();
}

/**
 * Make a card with a chart.
 * spec: title; hint; format: of its numbers; log: a logarithmic axis; wide; marks: [{step, text}];
 * lines: [{label, colour, dash, x, y, smooth, points}].
 */
function chartCard(spec) {
  const plot = make("div", { class: "plot" });
  const legend = make("div", { class: "legend" });
  const at = make("span", { class: "at" });
  const section = card(spec.title, spec.hint, plot, legend);
  section.querySelector("h2").append(at);
  if (spec.wide) section.classList.add("wide");
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute(
    "aria-label",
    `Chart: ${spec.title}. Left and right arrows read values, plus and minus zoom, Escape shows all steps.`,
  );
  // It needs its width, which it has once it is in the page.
  queueMicrotask(() => {
    if (plot.isConnected) draw(spec, plot, legend, at);
  });
  return section;
}

function draw(spec, plot, legend, at) {
  const format = spec.format || shown;
  const entries = spec.lines.map((line) => legendEntry(spec, line));
  replaceChildren(
    legend,
    entries.map((entry) => entry.button),
  );
  const { data, series } = drawn(spec);
  const read = (chart) => {
    const { idx } = chart.cursor;
    const step = idx === null || idx === undefined ? null : chart.data[0][idx];
    at.textContent = step === null ? "by step" : `step ${shown(step)}`;
    spec.lines.forEach((line, number) => entries[number].read(line, step, format));
  };
  const chart = new uPlot(
    {
      width: plot.clientWidth,
      height: spec.wide ? 300 : HEIGHT,
      legend: { show: false },
      cursor: cursorOf(),
      scales: {
        x: { time: false, range: () => chosen.zoom || allSteps() },
        y: spec.log ? { distr: 3 } : { range: linearRange },
      },
      axes: axesOf(spec),
      series: [{}, ...series],
      hooks: {
        setCursor: [read],
        setSelect: [(u) => zoomToSelection(u)],
        draw: [(u) => drawMarks(u, spec.marks || [])],
      },
    },
    data,
    plot,
  );
  charts.add(chart);
  entries.forEach((entry, number) => entry.attach(chart, spec.lines[number].places));
  read(chart);
  listen(chart, plot);
}

/** Return uPlot's columns and series: of smoothed lines the raw one first, faint. */
function drawn(spec) {
  const tables = [],
    series = [];
  for (const line of spec.lines) {
    const usable = spec.log ? line.y.map((value) => (value > 0 ? value : null)) : line.y;
    const smooth = line.smooth && chosen.smoothing > 0;
    const show = !chosen.switchedOff.has(`${spec.title}/${line.label}`);
    const stroke = colour(line.colour);
    const points = { show: line.points || line.x.length < 3, size: 5, fill: stroke };
    line.places = [series.length + 1];
    tables.push([line.x, usable]);
    series.push({
      show,
      stroke,
      width: smooth ? 1 : 1.75,
      dash: line.dash,
      points,
      alpha: smooth ? 0.4 : 1,
    });
    if (smooth) {
      line.places.push(series.length + 1);
      tables.push([line.x, smoothed(usable, chosen.smoothing)]);
      series.push({ show, stroke, width: 2, dash: line.dash, points: { show: false } });
    }
  }
  return { data: tables.length ? uPlot.join(tables) : [[]], series };
}

function cursorOf() {
  return {
    y: false,
    drag: { x: true, y: false, setScale: false },
    points: { size: 7 },
    bind: { dblclick: () => () => (resetZoom(), null) },
    // Others show the same step; only the chart under the pointer is dragged.
    sync: {
      key: "steps",
      filters: { pub: (type) => type === "mousemove" || type === "mouseleave" },
    },
  };
}

/** The values with some room around them; of equal ones as well. */
function linearRange(u, min, max) {
  if (min === null) return [0, 1];
  if (min !== max) return uPlot.rangeNum(min, max, 0.1, true);
  const room = Math.abs(min) / 10 || 1;
  return [min - room, max + room];
}

function axesOf(spec) {
  const grid = { stroke: colour("--grid"), width: 1 };
  const common = {
    stroke: colour("--soft"),
    grid,
    ticks: { ...grid, size: 4 },
    font: "12px system-ui, sans-serif",
  };
  const label = (value) =>
    value === null || value === undefined ? "" : (spec.format || shortly)(value);
  return [
    {
      ...common,
      size: 32,
      values: (u, splits) => splits.map((step) => (Number.isInteger(step) ? shortly(step) : "")),
    },
    {
      ...common,
      values: (u, splits) => splits.map(label),
      size: (u, values) => 18 + 7 * Math.max(2, ...(values || []).map((text) => text.length)),
    },
  ];
}

/** A number on an axis: 12k, 3M. */
function shortly(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${Number((value / 1e9).toPrecision(4))}G`;
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
  return size < 1e-3 && size > 0 ? value.toExponential() : String(Number(value.toPrecision(6)));
}

function zoomToSelection(u) {
  const { left, width } = u.select;
  if (width < 4) return;
  const first = u.posToVal(left, "x"),
    last = u.posToVal(left + width, "x");
  u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  zoomTo(first, last);
}

/** Draw where attempts resumed. */
function drawMarks(u, marks) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = colour("--soft");
  ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.lineWidth = devicePixelRatio;
  ctx.textAlign = "left";
  ctx.textBaseline = "alphabetic";
  for (const { step, text } of marks) {
    const x = Math.round(u.valToPos(step, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) continue;
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.fillText(text, x + 4 * devicePixelRatio, bbox.top + 12 * devicePixelRatio);
  }
  ctx.restore();
}

/** A line's entry below the chart: its colour, name and value; a press switches the line off. */
function legendEntry(spec, line) {
  const key = `${spec.title}/${line.label}`;
  const value = make("span", { class: "value" });
  const swatch = make("i", {
    class: line.dash && line.dash.length ? "swatch dashed" : "swatch",
    style: { "--swatch": `var(${line.colour})` },
  });
  const button = make(
    "button",
    { type: "button", "aria-pressed": !chosen.switchedOff.has(key) },
    swatch,
    quoted(line.label, "name"),
    value,
  );
  const read = (of, step, format) => {
    const place = step === null ? of.x.length - 1 : nearest(of.x, step);
    const elsewhere = step !== null && of.x[place] !== step;
    value.textContent = `${format(of.y[place])}${elsewhere ? ` @ ${shown(of.x[place])}` : ""}`;
  };
  const attach = (chart, places) => {
    button.addEventListener("click", () => {
      const show = chosen.switchedOff.delete(key);
      if (!show) chosen.switchedOff.add(key);
      button.setAttribute("aria-pressed", String(show));
      places.forEach((place) => chart.setSeries(place, { show }));
    });
  };
  return { button, read, attach };
}

/** Follow the keyboard, a finger, and the width of the page. */
function listen(chart, plot) {
  plot.addEventListener("keydown", (event) => {
    const acts = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key in acts) moveCursor(chart, acts[event.key] * (event.shiftKey ? 10 : 1));
    else if (event.key === "+" || event.key === "=") zoomBy(0.5);
    else if (event.key === "-") zoomBy(2);
    else if (event.key === "Escape" || event.key === "0") resetZoom();
    else return;
    event.preventDefault();
  });
  chart.over.addEventListener(
    "touchmove",
    (event) => {
      const left = event.touches[0].clientX - chart.over.getBoundingClientRect().left;
      chart.setCursor({ left, top: 10 }, true, true);
    },
    { passive: true },
  );
  new ResizeObserver(() => {
    const width = plot.clientWidth;
    if (width > 0 && width !== chart.width) chart.setSize({ width, height: chart.height });
  }).observe(plot);
}

/** Move the cursor by some of the steps that are shown. */
function moveCursor(chart, by) {
  const steps = chart.data[0];
  const { min, max } = chart.scales.x;
  const current = chart.cursor.idx;
  let place =
    current === null || current === undefined ? nearest(steps, by > 0 ? min : max) : current + by;
  place = Math.max(nearest(steps, min), Math.min(nearest(steps, max), place));
  chart.setCursor({ left: chart.valToPos(steps[place], "x"), top: 10 }, true, true);
}
