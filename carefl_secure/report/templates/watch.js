"use strict";
const put = (id, text) => { document.getElementById(id).textContent = text; };
const cells = (row, tag, values) => row.replaceChildren(...values.map((value) => {
  const cell = document.createElement(tag);
  cell.textContent = value;
  return cell;
}));

function show(found) {
  const error = document.getElementById("error");
  error.hidden = !found.error;
  error.textContent = found.error || "";
  if (found.error) return;
  const state = found.state;
  put("status", `${state.state}; ${new Date().toLocaleTimeString()}`);
  put("epsilon", found.epsilon === null ? "none yet" : found.epsilon);
  put("limit", state.epsilon_planned === null ? "no limit is agreed" : `of ${state.epsilon_planned} agreed`);
  document.getElementById("gauge").style.width = `${100 * (found.share || 0)}%`;
  put("rounds", `${state.rounds_finished} of ${state.rounds_planned === null ? "?" : state.rounds_planned}`);
  put("paid", `${state.rounds_paid} paid, ${state.rounds_paid_but_not_opened} of them not opened`);
  put("survivors", state.survivors === null ? "–" : state.survivors);
  put("refused", state.refused ? `refused or away: ${state.refused}` : "");
  put("seconds", state.seconds_per_round === null ? "–" : state.seconds_per_round.toFixed(1));
  document.getElementById("charts").innerHTML = found.charts.join("");  // SVG that the server escaped
  const names = found.rounds.length ? Object.keys(found.rounds[0]) : [];
  cells(document.getElementById("head"), "th", names.map((name) => name.replace("macro_f1", "F1")));
  document.getElementById("body").replaceChildren(...found.rounds.map((round) => {
    const row = document.createElement("tr");
    cells(row, "td", names.map((name) => round[name] === undefined ? "–" : round[name]));
    return row;
  }));
  cells(document.getElementById("events"), "li", found.events);
}

async function follow() {
  try {
    show(await (await fetch("/state.json", { cache: "no-store" })).json());
  } catch (error) {
    show({ error: "carefl-secure watch was stopped, or cannot be reached; start it again and reload this page" });
  }
  setTimeout(follow, 2000);
}

follow();
