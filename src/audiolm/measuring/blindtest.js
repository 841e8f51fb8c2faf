// TEST = {test, prompt, clips: [{id, sound}]}. Answers are kept in this browser until they are saved as a file.
const $ = id => document.getElementById(id);
const name = `audiolm-listening-${TEST.test}`;
const kept = (() => { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } })();
const state = kept ?? {test: TEST.test, rater: "", order: shuffled(TEST.clips.map(clip => clip.id)), ratings: {}};
const sounds = Object.fromEntries(TEST.clips.map(clip => [clip.id, clip.sound]));
const player = $("player"), answers = ["real", "generated"];
const rated = () => Object.keys(state.ratings).length;
let heard = 0;

function shuffled(list) { // every rater their own order
  for (let last = list.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [list[last], list[other]] = [list[other], list[last]];
  }
  return list;
}

function show() {
  const done = rated(), over = done === state.order.length;
  $("start").hidden = true;
  $("trial").hidden = over;
  $("finish").hidden = !over;
  if (over) return offer();
  $("count").textContent = `Recording ${done + 1} of ${state.order.length}`;
  $("progress").value = done;
  heard = 0;
  for (const answer of answers) $(answer).disabled = true;
  player.src = sounds[state.order[done]];
  player.play().catch(() => {}); // a browser may want a click first
}

function rate(answer) {
  if ($(answer).disabled || $("trial").hidden) return;
  player.pause();
  state.ratings[state.order[rated()]] = answer;
  try { localStorage.setItem(name, JSON.stringify(state)); } catch { /* private windows keep nothing */ }
  show();
}

function offer() {
  const {test, rater, ratings} = state;
  const text = JSON.stringify({test, rater, ratings}, null, 1) + "\n";
  $("save").href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  $("save").download = `ratings-${test}-${rater.replace(/[^\p{L}\p{N}]+/gu, "-") || "anonymous"}.json`;
  $("save").focus();
}

player.addEventListener("timeupdate", () => {
  heard = Math.max(heard, player.currentTime);
  if (heard > TEST.prompt + 1) for (const answer of answers) $(answer).disabled = false;
});
$("begin").addEventListener("click", () => { state.rater = $("rater").value.trim() || state.rater; show(); });
for (const answer of answers) $(answer).addEventListener("click", () => rate(answer));
addEventListener("keydown", event => {
  if (event.target.tagName === "INPUT" || event.ctrlKey || event.metaKey || event.altKey || $("trial").hidden) return;
  if (event.key === "r") rate("real");
  if (event.key === "g") rate("generated");
  if (event.key === "p") player.paused ? player.play() : player.pause();
});
if (kept) { $("rater").value = state.rater; $("resumed").textContent = `continues after ${rated()} answers`; }
