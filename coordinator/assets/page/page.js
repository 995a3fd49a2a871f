"use strict";
// What the coordinator sends (an update has what is new of the series and the events, and the whole
// state) becomes the page.

const MAX_EVENTS = 200;
// A run that is served sends its heartbeats twice a second; a connection without them is opened
// again.
const MAX_SILENCE_MS = 20000;
const RETRY_MS = 5000;
const ENDED_RETRY_MS = 10000;
const ENDED = ["done", "stopped", "failed"];

const known = { cursor: null, run: null, series: {}, evaluations: {}, events: [], state: null };
const by = (id) => document.getElementById(id);
const charts = {
  loss: new LineChart("loss-chart"),
  accuracy: new LineChart("accuracy-chart"),
  rate: new LineChart("rate-chart"),
};
let source = null,
  heard = 0,
  drawing = false,
  figuresOf = null,
  cosinesShown = "",
  selectShown = "";

function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function tone(element, value) {
  if (element.dataset.tone !== value) element.dataset.tone = value;
}

// Brings the rows of a list or a table to these, without touching what is the same: focus and
// selection stay.
function fill(place, rows, tag, update) {
  while (place.children.length > rows.length) place.lastElementChild.remove();
  while (place.children.length < rows.length) place.append(document.createElement(tag));
  rows.forEach((row, index) => update(place.children[index], row));
}

function cells(place, rows, tones) {
  fill(place, rows, "tr", (line, row) => fill(line, row, "td", (cell, value) => text(cell, value)));
  if (tones) rows.forEach((_, index) => tone(place.children[index], tones[index]));
}

function facts(place, pairs) {
  fill(place, pairs, "div", (item, pair) => {
    fill(item, pair, "dd", () => {});
    if (item.firstElementChild.tagName === "DD")
      item.firstElementChild.replaceWith(document.createElement("dt"));
    pair.forEach((value, index) => text(item.children[index], value));
  });
}

// Columns of a series from index `from` on are replaced.
function patch(name, new_) {
  const old = known.series[name] || { step: [], loss: [], lr: [], terms: {} };
  for (const key of ["step", "loss", "lr"])
    old[key] = old[key].slice(0, new_.from).concat(new_[key]);
  for (const [term, values] of Object.entries(new_.terms)) {
    const before = old.terms[term] || [];
    const padded = Array.from({ length: new_.from }, (_, index) =>
      index < before.length ? before[index] : null,
    );
    old.terms[term] = padded.concat(values);
  }
  old.stride = new_.stride;
  known.series[name] = old;
}

function take(update) {
  if (update.reset)
    Object.assign(known, { run: update.run, series: {}, evaluations: {}, events: [] });
  known.cursor = update.cursor;
  for (const [name, series] of Object.entries(update.series)) patch(name, series);
  Object.assign(known.evaluations, update.evaluations);
  known.events = known.events.concat(update.events).slice(-MAX_EVENTS);
  if (update.state) known.state = update.state;
  if (!update.reset) announce(update.events);
}

// For those who do not see the table: workers that are lost and come back, and the end.
function announce(events) {
  const loud = events.filter((event) =>
    ["lost", "abandoned", "recovered", "ended", "storage_blocked"].includes(event.event),
  );
  if (loud.length) text(by("announcement"), loud.slice(-3).map(eventText).join(". "));
}

function activeStage() {
  const stages = known.state.stages;
  const active =
    stages.find((stage) => stage.state === "active") ||
    stages.filter((stage) => stage.steps > 0).pop() ||
    stages[0];
  return active ? active.name : "";
}

function drawHead() {
  const { state, run } = known;
  const [words, kind] = stateText(state.state);
  const name = run ? run.directory.split("/").pop() : "Run";
  text(by("name"), name);
  text(by("state"), words);
  tone(by("badge"), kind);
  const index = state.stages.findIndex((stage) => stage.state === "active");
  const stage = state.stages[index];
  const ended = ENDED.includes(state.state);
  let detail = "";
  if (state.ended) detail = eventText(state.ended);
  else if (stage && stage.steps === 0)
    detail = "Before the first step of stage " + stage.name + ".";
  else if (stage)
    detail =
      "Stage " +
      (index + 1) +
      " of " +
      state.stages.length +
      ", " +
      stage.name +
      ": step " +
      whole(stage.steps) +
      (stage.total ? " of " + whole(stage.total) : "") +
      ", epoch " +
      (stage.epoch + 1) +
      (stage.epochs ? " of " + stage.epochs : "") +
      ".";
  else detail = state.stages.length ? "Every stage is complete." : "The run has no stages yet.";
  text(by("detail"), detail);
  const rows = [];
  if (state.is_live && !ended) {
    rows.push([
      "Stage ends in",
      state.eta_seconds === null ? "not known yet" : duration(state.eta_seconds),
    ]);
    rows.push(
      ["Images per second", number(state.images_per_second)],
      ["Steps per second", number(state.steps_per_second)],
    );
  }
  if (state.last)
    rows.push(["Loss", number(state.last.loss)], ["Learning rate", number(state.last.lr)]);
  rows.push(
    ["Workers lost", whole(state.lost)],
    ["Worker restarts", whole(state.restarts)],
    ["Coordinator starts", whole(state.starts)],
  );
  facts(by("facts"), rows);
  const share =
    stage && stage.total ? " " + Math.floor((100 * stage.steps) / stage.total) + " %" : "";
  document.title = words + share + " – " + name;
  const problems = [];
  if (state.storage_problem)
    problems.push("The run directory cannot be written: " + state.storage_problem);
  if (state.read_problem) problems.push("The run directory cannot be read: " + state.read_problem);
  if (state.damaged) problems.push(state.damaged + " lines of the ledger cannot be read.");
  if (run && run.quick)
    problems.push("Quick run: a few steps on a few images; its numbers are no results.");
  by("problem").hidden = problems.length === 0;
  text(by("problem"), problems.join(" "));
}

function drawStages() {
  fill(by("stages"), known.state.stages, "li", (item, stage) => {
    if (!item.children.length) {
      for (const name of ["name", "soft", "track"])
        item.append(Object.assign(document.createElement("div"), { className: name }));
      item.lastElementChild.append(document.createElement("div"));
    }
    item.dataset.state = stage.state;
    const share = stage.state === "complete" ? 1 : stage.total ? stage.steps / stage.total : 0;
    const steps = stage.steps
      ? whole(stage.steps) +
        (stage.total && stage.state !== "complete" ? " of " + whole(stage.total) : "") +
        " steps"
      : "";
    text(item.children[0], stage.name);
    text(
      item.children[1],
      [stage.kind, stage.state === "active" ? "current" : stage.state, steps]
        .filter(Boolean)
        .join(" · "),
    );
    item.children[2].setAttribute("aria-hidden", "true");
    item.children[2].firstElementChild.style.width = Math.min(100, 100 * share) + "%";
  });
}

function drawSelect() {
  const names = known.state.stages.map((stage) => stage.name);
  if (selectShown === JSON.stringify(names)) return;
  selectShown = JSON.stringify(names);
  const select = by("stage"),
    chosen = select.value;
  const option = (value, label) =>
    Object.assign(document.createElement("option"), { value, textContent: label });
  select.replaceChildren(
    option("", "the one in training"),
    ...names.map((name) => option(name, name)),
  );
  select.value = names.includes(chosen) ? chosen : "";
}

function drawCharts() {
  const name = by("stage").value || activeStage();
  const series = known.series[name] || { step: [], loss: [], lr: [], terms: {}, stride: 1 };
  const log = by("log").getAttribute("aria-pressed") === "true";
  const positive = (values) => (log ? values.map((value) => (value > 0 ? value : null)) : values);
  const terms = Object.keys(series.terms).filter(
    (term) =>
      Object.keys(series.terms).length > 1 ||
      series.terms[term].some((value, index) => value !== series.loss[index]),
  );
  const names = ["total", ...terms],
    columns = [series.loss, ...terms.map((term) => series.terms[term])];
  const last = series.step.length - 1;
  const spoken =
    last < 0
      ? "no step yet"
      : names.map((term, index) => term + " " + number(columns[index][last])).join(", ") +
        " after step " +
        whole(series.step[last]);
  text(
    by("loss-note"),
    name + (series.stride > 1 ? ", a point is the mean of " + series.stride + " steps" : ""),
  );
  charts.loss.show([series.step, ...columns.map(positive)], names, {
    log,
    empty: "no step yet",
    label: "Loss by term of stage " + name + ": " + spoken,
    x: "step",
  });
  fill(by("loss-values"), last < 0 ? [] : names, "tr", (row, term) => {
    const values = columns[names.indexOf(term)].filter(Number.isFinite);
    const shown = [
      term,
      number(columns[names.indexOf(term)][last]),
      values.length ? number(Math.min(...values)) : "–",
    ];
    fill(row, shown, "td", (cell, value) => {
      if (cell.lastChild?.nodeValue !== value) {
        cell.replaceChildren(value);
      }
    });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = colour(names.indexOf(term));
    if (row.firstElementChild.children.length === 0) row.firstElementChild.prepend(swatch);
    else row.firstElementChild.firstElementChild.style.background = colour(names.indexOf(term));
  });
  const rate = last < 0 ? "no step yet" : number(series.lr[last]);
  charts.rate.show([series.step, series.lr], ["learning rate"], {
    empty: "no step yet",
    label: "Learning rate of stage " + name + ": " + rate,
    x: "step",
  });
  drawAccuracy(name, known.evaluations[name] || []);
}

function drawAccuracy(name, evaluations) {
  const epochs = evaluations.map((one) => one.epoch + 1),
    values = evaluations.map((one) => 100 * one.accuracy);
  const last = evaluations[evaluations.length - 1],
    best = evaluations.filter((one) => one.best).pop();
  const said = last
    ? accuracy(last.accuracy) + " after epoch " + (last.epoch + 1)
    : "no evaluation yet";
  text(by("accuracy-note"), last ? "percent, by " + String(last.measure).replaceAll("_", " ") : "");
  charts.accuracy.show([epochs, values], ["accuracy"], {
    empty: "no evaluation yet",
    label: "Validation accuracy of stage " + name + " in percent: " + said,
    x: "epoch",
    points: evaluations.length < 60,
  });
  const rows = last ? [["last: " + (last.epoch + 1), accuracy(last.accuracy)]] : [];
  if (best) rows.push(["best: " + (best.epoch + 1), accuracy(best.accuracy)]);
  cells(by("accuracy-values"), rows);
}

function drawCosines() {
  const tables = known.state.results || {};
  const old = [
    ...(tables.backbones || []),
    ...(tables.rows || []).map((row) => ({ ...row, name: row.method })),
  ];
  const live = known.state.stages.filter(
    (stage) => stage.result && "cosine_between_views" in stage.result,
  );
  const rows = live.length ? live.map((stage) => ({ ...stage.result, name: stage.name })) : old;
  const shown = JSON.stringify([rows, by("cosines-chart").clientWidth, css("--ink")]);
  if (shown === cosinesShown) return;
  cosinesShown = shown;
  showCosines(by("cosines-chart"), rows);
  cells(
    by("cosines-values"),
    rows.map((row) => [row.name, ...COSINES.map(([key]) => number(row[key]))]),
  );
}

function bars(place, rows, empty) {
  const total = rows.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (!rows.length) rows = [[empty, null]];
  fill(place, rows, "tr", (line, [name, seconds]) => {
    fill(line, [name, number(seconds), ""], "td", (cell, value) => {
      if (value) text(cell, value);
    });
    const cell = line.lastElementChild;
    if (!cell.children.length) {
      const bar = Object.assign(document.createElement("div"), { className: "bar" });
      bar.append(document.createElement("div"), document.createElement("span"));
      cell.append(bar);
    }
    const share = total > 0 && seconds !== null ? seconds / total : 0;
    cell.firstElementChild.firstElementChild.style.width = 100 * share + "%";
    text(cell.firstElementChild.lastElementChild, seconds === null ? "" : percent(share));
  });
}

function drawTimes() {
  const { state } = known;
  bars(
    by("phases"),
    state.phases.map(({ phase, seconds }) => [phase, seconds]),
    state.is_live ? "no step yet" : "known only while a run is served",
  );
  const states = (state.state_seconds || []).filter(({ seconds }) => seconds > 0);
  bars(
    by("states"),
    states.map(({ state: name, seconds }) => [stateText(name)[0], seconds]),
    state.is_live ? "under a second" : "known only while a run is served",
  );
}

function drawWorkers() {
  const { state } = known;
  const connected = state.workers.filter((worker) => worker.rank !== null).length;
  const on = state.devices
    ? ", on " + state.devices + (state.collectives ? " by " + state.collectives : "")
    : "";
  const more = state.more_workers ? " " + state.more_workers + " more are not listed." : "";
  const ended = ENDED.includes(state.state)
    ? state.workers.length +
      " workers took part in " +
      state.generation +
      (state.generation === 1 ? " generation" : " generations") +
      on +
      "." +
      more
    : "";
  text(
    by("workers-note"),
    ended ||
      (state.workers.length
        ? connected +
          (connected === 1 ? " rank in generation " : " ranks in generation ") +
          state.generation +
          on +
          "." +
          more
        : "No worker has joined yet."),
  );
  const row = (worker) => [
    worker.rank === null ? "–" : String(worker.rank),
    worker.worker,
    worker.state === "ready" && worker.phase
      ? worker.phase
      : worker.state +
        (worker.reason && worker.state !== "ready" && worker.state !== "ended"
          ? ": " + worker.reason
          : ""),
    worker.step === undefined ? "–" : whole(worker.step),
    worker.heartbeat_age_seconds === undefined
      ? "–"
      : worker.heartbeat_age_seconds.toFixed(1) + " s ago",
    percent(worker.wait_share),
    whole(worker.restarts),
    worker.host || "–",
    worker.device || "–",
  ];
  const kind = (worker) => {
    if (worker.state === "lost" || worker.state === "abandoned") return "bad";
    return worker.state === "restarting" || worker.heartbeat_age_seconds > 1.5 ? "warn" : "";
  };
  cells(by("workers"), state.workers.map(row), state.workers.map(kind));
}

function drawResults() {
  const results = known.state.results;
  text(
    by("results-note"),
    results
      ? "Accuracy on the test images in percent."
      : "The table is written when the run is done or stopped; complete stages are listed before " +
          "that.",
  );
  let rows = [];
  if (results) {
    const row = (name, one, validation) =>
      [
        name,
        one.fine_test_accuracy,
        one.coarse_test_accuracy,
        one.knn_fine_accuracy,
        validation,
        one.seconds,
      ].map((value) => (typeof value === "string" ? value : number(value)));
    rows = (results.rows || [])
      .map((one) => row(one.method, one, one.fine_validation_accuracy))
      .concat(
        (results.backbones || []).map((one) => row(one.name, one, one.coarse_validation_accuracy)),
      );
  } else {
    const share = (value) => (value === null || value === undefined ? "–" : number(100 * value));
    const done = known.state.stages.filter((stage) => stage.result);
    rows = done.map(({ name, result }) => [
      name,
      share(result.fine_test_accuracy),
      share(result.coarse_test_accuracy),
      share(result.knn_fine_accuracy),
      share(result.validation_accuracy),
      number(result.seconds),
    ]);
  }
  cells(by("results"), rows);
}

function lines(place, events) {
  fill(place, events, "li", (item, event) => {
    if (!item.children.length)
      item.append(document.createElement("time"), document.createElement("span"));
    text(item.firstElementChild, clock(event.time));
    text(item.lastElementChild, eventText(event));
    tone(item, eventTone(event));
  });
}

function drawLists() {
  lines(by("events"), known.events.slice().reverse());
  const { checkpoints, checkpoint_count: count } = known.state;
  text(
    by("checkpoints-note"),
    count ? whole(count) + " committed; the newest " + checkpoints.length + ":" : "None yet.",
  );
  lines(by("checkpoints"), checkpoints.slice().reverse());
  if (!known.run) return;
  const run = known.run;
  facts(by("about"), [
    ["Experiment", run.preset],
    ["Seed", String(run.seed)],
    ["Run", run.id],
    ["Version", run.version],
    ["Directory", run.directory],
  ]);
  text(by("config"), run.config);
}

// Of the rows that are complete, as HTML that the coordinator draws: asked for when another stage
// is.
function drawFigures() {
  const complete = known.state.stages.filter((stage) => stage.state === "complete").length;
  if (!source || complete === figuresOf) return;
  figuresOf = complete;
  fetch("figures")
    .then((answer) => (answer.ok ? answer.text() : Promise.reject(new Error(answer.statusText))))
    .then((html) => {
      by("figures").innerHTML = html;
      by("figures-section").hidden = !html;
    })
    .catch(() => {
      figuresOf = null;
    });
}

function draw() {
  drawing = false;
  if (!known.state) return;
  for (const part of [
    drawHead,
    drawStages,
    drawSelect,
    drawCharts,
    drawCosines,
    drawTimes,
    drawWorkers,
    drawResults,
    drawFigures,
    drawLists,
  ])
    part();
}

// Once a frame, and not in a hidden tab.
function redraw() {
  if (drawing || document.hidden) return;
  drawing = true;
  requestAnimationFrame(draw);
}

function connection(message) {
  by("connection").hidden = !message;
  text(by("connection"), message || "");
}

function connect() {
  if (source) source.close();
  heard = Date.now();
  source = new EventSource("events" + (known.cursor ? "?since=" + known.cursor : ""));
  source.addEventListener("update", (message) => {
    heard = Date.now();
    connection("");
    take(JSON.parse(message.data));
    redraw();
  });
  source.addEventListener("error", () => {
    if (known.state && ENDED.includes(known.state.state)) {
      source.close();
      connection(
        "The coordinator has exited; this is the last state of the run. thanos-coord view " +
          (known.run ? known.run.directory : "RUN_DIR") +
          " shows it again.",
      );
      setTimeout(connect, ENDED_RETRY_MS);
      return;
    }
    connection(
      "The connection to the coordinator is lost; trying again. The values are those of " +
        clock(heard / 1000) +
        ".",
    );
    // The browser comes back by itself unless it was refused.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_MS);
  });
}

by("stage").addEventListener("change", redraw);
by("log").addEventListener("click", () => {
  const pressed = by("log").getAttribute("aria-pressed") === "true";
  by("log").setAttribute("aria-pressed", String(!pressed));
  redraw();
});
document.addEventListener("visibilitychange", redraw);
new ResizeObserver(redraw).observe(by("cosines-chart"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const chart of Object.values(charts)) chart.clear("");
  redraw();
});
setInterval(() => {
  const live = known.state && known.state.is_live && !ENDED.includes(known.state.state);
  if (
    live &&
    source &&
    source.readyState === EventSource.OPEN &&
    Date.now() - heard > MAX_SILENCE_MS
  )
    connect();
}, MAX_SILENCE_MS / 4);
// A file that `report --html` has written contains the run; a page that is served asks for it.
const snapshot = by("snapshot").textContent;
if (snapshot) {
  // The figures of a file have it.
  by("cosines-chart").hidden = by("figures").children.length > 0;
  take(JSON.parse(snapshot));
  redraw();
} else {
  connect();
}
