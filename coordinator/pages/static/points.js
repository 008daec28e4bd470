// Shows the trial of the cross near the pointer, and opens it on a click.

const root = document.querySelector("[data-study]");
const MAX_DISTANCE = 14; // pixels

function nearest(event) {
  const plot = event.target.closest("#panel-convergence .plot");
  if (plot === null) return null;
  let best = null;
  let least = MAX_DISTANCE ** 2;
  for (const mark of plot.querySelectorAll("use[data-trial]")) {
    const box = mark.getBoundingClientRect();
    const squared = (box.x + box.width / 2 - event.clientX) ** 2 + (box.y + box.height / 2 - event.clientY) ** 2;
    if (squared < least) [best, least] = [mark, squared];
  }
  return best;
}

root.addEventListener("pointermove", (event) => {
  const tip = document.getElementById("points-tip");
  if (tip === null) return;
  const mark = nearest(event);
  const text = mark === null ? "\u00a0" : `trial ${mark.dataset.trial}, ${mark.parentNode.getAttribute("class")}`;
  if (tip.textContent !== text) tip.textContent = text;
});

root.addEventListener("click", (event) => {
  const mark = nearest(event);
  if (mark !== null) location.assign(`/studies/${root.dataset.study}/trials/${mark.dataset.trial}`);
});
