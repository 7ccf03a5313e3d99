// Shows an HTML file in a frame that has no origin: its scripts run, but reach neither this page nor its server.
export default function (component) {
  const { data, parentElement } = component;
  let frame = parentElement.querySelector("iframe");
  if (!frame) {
    frame = document.createElement("iframe");
    frame.setAttribute("sandbox", "allow-scripts");
    frame.style.cssText = "width: 100%; border: 1px solid var(--st-border-color); border-radius: 6px; background: Canvas";
    parentElement.appendChild(frame);
  }
  frame.title = data.title;
  frame.style.height = `${data.height}px`;
  if (frame.dataset.digest !== data.digest) {
    frame.dataset.digest = data.digest;
    frame.srcdoc = data.html;
  }
}
