"use strict";
// Numbers, times, states and events in words. Everything that a worker or a file has sent is text,
// never markup.

const STATES = {
  waiting_for_workers: ["waiting for workers", "warn"],
  starting: ["starting", "warn"],
  training: ["training", "good"],
  evaluating: ["evaluating", "good"],
  saving: ["saving a checkpoint", "good"],
  recovering: ["recovering", "bad"],
  ended: ["ended", "idle"],
  done: ["done", "good"],
  stopped: ["stopped", "warn"],
  failed: ["failed", "bad"],
  running: ["running in another process", "good"],
  interrupted: ["interrupted", "warn"],
};

function stateText(state) {
  return STATES[state] || [String(state), "idle"];
}

// Four significant digits.
function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

function whole(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
}

function percent(share) {
  return share === null || share === undefined
    ? "–"
    : (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + " %";
}

function accuracy(share) {
  return share === null || share === undefined ? "–" : (100 * share).toFixed(2) + " %";
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return "under a second";
  const s = Math.round(seconds);
  if (s < 90) return s + " s";
  if (s < 5400) return Math.round(s / 60) + " min";
  const minutes = Math.round(s / 60);
  return minutes < 2880
    ? Math.floor(minutes / 60) + " h " + (minutes % 60) + " min"
    : Math.round(minutes / 1440) + " days";
}

function clock(seconds) {
  const time = new Date(seconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const today = new Date().toDateString() === time.toDateString();
  const day = today
    ? ""
    : time.getFullYear() + "-" + two(time.getMonth() + 1) + "-" + two(time.getDate()) + " ";
  return day + two(time.getHours()) + ":" + two(time.getMinutes()) + ":" + two(time.getSeconds());
}

// The step of a stage: "after step 60 of stage supcon".
function after(event) {
  return event.stage
    ? "after step " + whole(event.step) + " of stage " + event.stage
    : "before the first step";
}

const EVENTS = {
  coordinator: (e) =>
    (e.again ? "the coordinator was restarted" : "the coordinator started") +
    " (pid " +
    e.pid +
    ")",
  joined: (e) => e.worker + " joined from " + e.host + " (pid " + e.pid + ")",
  fetched: (e) => e.worker + " fetched the " + e.split + " images",
  refused: (e) => e.worker + " was refused: " + e.reason,
  began: (e) => "generation " + e.generation + " began with " + (e.ranks || []).length + " ranks",
  checkpoint: (e) => "checkpoint " + after(e),
  checkpoint_failed: (e) => "no checkpoint " + after(e) + ": " + e.reason,
  stage_complete: (e) => "stage " + e.stage + " is complete after " + duration(e.seconds),
  stopping: (e) => "stopping: " + e.reason,
  termination_notice: (e) => e.worker + " received SIGTERM",
  saving_before_end: (e) => e.worker + " saves its state before the run ends",
  storage_blocked: (e) => "the run directory cannot be written: " + e.problem,
  storage_recovered: (e) => "the run directory can be written again after " + duration(e.seconds),
  grace_over: () => "the time for a stop is over",
  skipped: (e) => "update skipped " + after(e) + ": " + e.problem,
  repaired: (e) => "replica divergence repaired: " + e.problem,
  straggler: (e) =>
    e.worker +
    " is a straggler: the others wait " +
    percent(e.share_of_time_waited_for) +
    " of their time",
  lost: (e) =>
    "lost " + (String(e.reason).startsWith(e.worker) ? e.reason : e.worker + ": " + e.reason),
  group_failed: (e) => "the process group of " + e.worker + " failed: " + e.reason,
  restarting: (e) => "restarting " + e.worker + " (restart " + e.restart + "): " + e.how,
  abandoned: (e) => "gave up on " + e.worker + ": " + e.how,
  recovered: (e) => "recovered in " + duration(e.seconds) + ", in training again " + after(e),
  reconfigured: (e) => "resumed with " + (e.changes || []).length + " changes of the configuration",
  ended: (e) => "the run ended: " + (e.message || e.how),
};

const TONES = {
  lost: "bad",
  abandoned: "bad",
  storage_blocked: "bad",
  group_failed: "bad",
  checkpoint_failed: "bad",
  restarting: "warn",
  straggler: "warn",
  skipped: "warn",
  refused: "warn",
  stopping: "warn",
  repaired: "warn",
  termination_notice: "warn",
  recovered: "good",
  storage_recovered: "good",
  stage_complete: "good",
};

function eventText(event) {
  const known = EVENTS[event.event];
  if (known) return known(event);
  const rest = Object.entries(event).filter(([key]) => key !== "time" && key !== "event");
  return (
    event.event +
    (rest.length
      ? ": " + rest.map(([key, value]) => key + " " + JSON.stringify(value)).join(", ")
      : "")
  );
}

function eventTone(event) {
  if (event.event === "ended") return { done: "good", failed: "bad" }[event.how] || "warn";
  return TONES[event.event] || "";
}
