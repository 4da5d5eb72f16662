(async () => {
  setUpLinks();
  let timeline = null;
  setUpTheme(() => {
    if (!timeline) return;
    timeline.takeColours();
    timeline.redraw();
  });
  const data = await load(JSON.parse(byId("data").textContent));
  byId("timeline").hidden = false;
  timeline = new Timeline(data);
  timeline.draw();
  byId("canvas").dataset.ready = "yes";
})();
