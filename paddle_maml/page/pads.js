// Draws on the page's canvases, by mouse, pen or finger. `mamlSketches` gives them as data URLs.
() => {
  if (window.mamlSketches) return;
  const pads = () => [...document.querySelectorAll("canvas.maml-pad")];
  const clear = (pad) => pad.getContext("2d").clearRect(0, 0, pad.width, pad.height);
  window.mamlSketches = () => pads().map((pad) => pad.toDataURL("image/png"));
  window.mamlClear = () => pads().forEach(clear);

  // Where an event is, in the pixels of the sketch; the page may show it larger or smaller.
  const place = (pad, event) => {
    const box = pad.getBoundingClientRect();
    const scale = pad.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  };
  const last = new Map(); // by pointer: the canvas that it draws on, and where it was
  const draw = (pad, from, to) => {
    const paper = pad.getContext("2d");
    paper.lineWidth = Number(pad.dataset.line);
    paper.lineCap = "round";
    paper.beginPath();
    paper.moveTo(...from);
    paper.lineTo(to[0], to[1] + 0.01); // a line of no length would leave no spot
    paper.stroke();
  };
  // At the document: what the page puts in the place of a canvas is heard too.
  document.addEventListener("pointerdown", (event) => {
    const pad = event.target.closest("canvas.maml-pad");
    if (!pad || event.button !== 0) return;
    event.preventDefault();
    pad.setPointerCapture(event.pointerId); // a line that leaves the canvas goes on
    const here = place(pad, event);
    draw(pad, here, here);
    last.set(event.pointerId, [pad, here]);
  });
  document.addEventListener("pointermove", (event) => {
    if (!last.has(event.pointerId)) return;
    let [pad, before] = last.get(event.pointerId);
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) {
      const here = place(pad, one);
      draw(pad, before, here);
      before = here;
    }
    last.set(event.pointerId, [pad, before]);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, (event) => last.delete(event.pointerId));
  }
  document.addEventListener("click", (event) => {
    const figure = event.target.closest(".maml-pads figcaption button")?.closest("figure");
    if (figure) clear(figure.querySelector("canvas"));
  });
}
