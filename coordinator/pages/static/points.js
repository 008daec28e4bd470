// Says of the cross under the pointer which trial it is, and opens it.

const root = document.querySelector("[data-study]");
const NEAR = 14;

function nearest(event) {
  const plot = event.target.closest("#panel-convergence .plot");
  if (plot === null) return null;
  let best = null;
  let least = NEAR ** 2;
  for (const mark of plot.querySelectorAll("use[data-trial]")) {
    const box = mark.getBoundingClientRect();
    const away = (box.x + box.width / 2 - event.clientX) ** 2 + (box.y + box.height / 2 - event.clientY) ** 2;
    if (away < least) [best, least] = [mark, away];
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
