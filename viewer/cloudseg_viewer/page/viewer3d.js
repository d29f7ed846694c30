// Neuroglancer in a frame of the same origin, driven through its own API (window.viewer; the version is pinned).

export const POINTS = "somas";
const MASKS = "soma_masks";
const HIDDEN = 0, SHOWN = 1, ACCEPTED = 2, REJECTED = 3, CHOSEN = 4;
const CLIENT = "/v/0/";
const START_MS = 90_000;
const SMALL_PX = 16, NEAR_PX = 120; // a soma across, on the screen

// Colours of a value from 0 to 1, then what the page says about single somas.
const SHADER = (value, [low, high] = [0, 1]) => `#uicontrol float size slider(min=1, max=40, default=8)
vec3 scale(float t) {
  t = clamp(t, 0.0, 1.0);
  vec3 middle = vec3(0.25, 0.80, 0.72);
  return t < 0.5 ? mix(vec3(0.36, 0.42, 0.95), middle, 2.0 * t) : mix(middle, vec3(1.0, 0.86, 0.28), 2.0 * t - 1.0);
}
void main() {
  int state = int(prop_state());
  if (state == ${HIDDEN}) discard;
  float value = ${value ? `float(prop_${value}())` : "0.0"};
  vec3 colour = ${value ? `value == value ? scale((value - ${real(low)}) / ${real(Math.max(high - low, 1e-6))}) : vec3(0.6)` : "vec3(0.98, 0.72, 0.28)"};
  float diameter = size;
  if (state == ${ACCEPTED}) colour = vec3(0.25, 0.85, 0.45);
  if (state == ${REJECTED}) colour = vec3(0.95, 0.25, 0.25);
  if (state == ${CHOSEN}) { colour = vec3(1.0); diameter = size * 2.0 + 4.0; }
  setColor(vec4(colour, 0.95));
  setPointMarkerSize(diameter);
  setPointMarkerBorderWidth(state == ${CHOSEN} ? 3.0 : 0.6);
  setPointMarkerBorderColor(state == ${CHOSEN} ? vec4(1.0, 0.2, 0.6, 1.0) : vec4(0.0, 0.0, 0.0, 0.6));
}
`;

/** The state to begin with: what the server knows of the root, and the points of the somas. */
export function firstState(config) {
  const here = location.origin;
  const [lower, upper] = config.bounds_nm;
  const state = config.state ? JSON.parse(JSON.stringify(config.state).replaceAll("{here}", here)) : {
    dimensions: Object.fromEntries([..."xyz"].map((axis) => [axis, [1e-9, "m"]])),
    position: lower.map((low, i) => (low + upper[i]) / 2),
    crossSectionScale: Math.max(...upper.map((high, i) => high - lower[i])) / 600,
    projectionScale: 1.4 * Math.max(...upper.map((high, i) => high - lower[i])),
    projectionOrientation: [0.35, 0.25, 0.1, 0.9],
    layers: [],
  };
  state.layers = state.layers.filter((layer) => layer.name !== POINTS);
  const linked = state.layers.some((layer) => layer.name === "segmentation");
  state.layers.push({
    type: "annotation",
    name: POINTS,
    source: `${config.points.replace("{here}", here)}/|neuroglancer-precomputed:`,
    shader: SHADER("volume_um3"),
    ...(linked ? { linkedSegmentationLayer: { segment: "segmentation" } } : {}),
  });
  state.layout = "4panel";
  delete state.selectedLayer;
  return state;
}

export class Space {
  /** `onPick(row)` is called when a soma, or a segment that holds one, is clicked. */
  constructor(frame, model, { onPick, onProblem }) {
    Object.assign(this, { frame, model, onPick, onProblem });
    this.states = new Uint8Array(model.n).fill(SHOWN);
    this.written = new WeakMap();
    this.ready = this.open();
  }

  async open() {
    this.frame.src = CLIENT;
    const ends = performance.now() + START_MS;
    while (!this.frame.contentWindow?.viewer) {
      if (performance.now() > ends) throw new Error("Neuroglancer did not start within 90 s; reload the page, or look into the browser's console");
      await new Promise((done) => setTimeout(done, 50));
    }
    this.viewer = this.frame.contentWindow.viewer;
  }

  /** Show a state. Neuroglancer may lose a layer when it is slow: then it is asked again. */
  async show(state) {
    await this.ready;
    const wanted = state.layers.map((layer) => layer.name);
    for (let attempt = 0; attempt < 3; ++attempt) {
      this.viewer.state.reset();
      this.viewer.state.restoreState(state);
      const there = this.viewer.layerManager.managedLayers.map((layer) => layer.name);
      if (wanted.every((name) => there.includes(name))) {
        this.listen();
        return;
      }
    }
    throw new Error(`Neuroglancer shows only some of the layers ${wanted.join(", ")}; reload the page`);
  }

  listen() {
    if (this.listening) return;
    this.listening = true;
    const { viewer } = this;
    // A cell that was dropped from memory and fetched again holds what the server sent.
    viewer.chunkQueueManager.visibleChunksChanged.add(() => {
      this.write();
      this.lookForProblems();
    });
    this.frame.contentDocument.addEventListener("click", (event) => this.picked(event), true);
    this.lookForProblems();
  }

  layer(name) {
    return this.viewer?.layerManager.getLayerByName(name)?.layer ?? null;
  }

  /** Every piece of point data that the viewer holds. */
  *cells() {
    for (const state of this.layer(POINTS)?.annotationStates?.states ?? []) {
      for (const source of state.source.spatiallyIndexedSources ?? []) {
        for (const chunk of source.chunks.values()) if (chunk.data) yield [chunk.data, state.source];
      }
    }
  }

  /** Tell the points which of them are shown. */
  update() {
    const { states, model } = this, { fails, n, verdicts, chosen } = model;
    for (let row = 0; row < n; ++row) states[row] = fails[row] === 0 ? SHOWN : HIDDEN;
    for (const [row, value] of verdicts) if (states[row]) states[row] = value === "rejected" ? REJECTED : ACCEPTED;
    if (chosen >= 0) states[chosen] = CHOSEN;
    this.version = (this.version ?? 0) + 1;
    this.write();
  }

  write() {
    let changed = false;
    for (const [data, source] of this.cells()) {
      if (this.written.get(data) === this.version) continue;
      this.written.set(data, this.version);
      changed = true;
      const bytes = data.serializedAnnotations.data, stride = bytes.length / this.model.n;
      const at = offsetOfState(source.properties.value ?? source.properties);
      for (let row = 0, i = at; row < this.states.length; ++row, i += stride) bytes[i] = this.states[row];
      data.bufferValid = false; // it goes to the graphics memory again with the next frame
    }
    if (changed) this.viewer.display.scheduleRedraw();
  }

  /** A soma's place, in the units (metres) of an axis. */
  place(row, scales) {
    return [..."xyz"].map((axis, i) => (this.model.columns.get(`${axis}_nm`).values[row] * 1e-9) / scales[i]);
  }

  /** Fly to a soma and select its neuron. */
  fly(row) {
    const { position } = this.viewer?.navigationState ?? {};
    if (!position?.valid) return;
    position.value = Float32Array.from(this.place(row, position.coordinateSpace.value.scales));
    this.comeNear(row);
    this.select(row);
  }

  /** Zoom the sections in where the soma would be a dot; who is near already keeps the zoom. */
  comeNear(row) {
    const { zoomFactor, displayDimensionRenderInfo } = this.viewer.navigationState;
    const radius = this.model.columns.get("radius_um")?.values[row];
    const pixel = zoomFactor.value * displayDimensionRenderInfo.value.canonicalVoxelPhysicalSize * 1e6; // um
    if (radius > 0 && (2 * radius) / pixel < SMALL_PX) zoomFactor.value *= (2 * radius) / pixel / NEAR_PX;
  }

  /** Select the neuron of a soma, and its own mask where there are masks. */
  select(row) {
    for (const [layer, column] of [["segmentation", "segment_id"], [MASKS, "soma_id"]]) {
      const id = this.model.columns.get(column)?.values[row] ?? 0n;
      const group = this.layer(layer)?.displayState.segmentationGroupState.value;
      if (!group || id === 0n) continue;
      group.visibleSegments.clear();
      group.selectedSegments.clear();
      group.visibleSegments.add(id);
    }
  }

  /** Colour the points by a column that they hold; by none for "". */
  colourBy(name) {
    const layer = this.layer(POINTS), column = this.model.columns.get(name);
    if (!layer) return;
    // A few extremes would leave one colour to all the others.
    const values = Float64Array.from(column?.values ?? []).filter((v) => v === v).sort();
    const range = [0.02, 0.98].map((part) => values[Math.floor(values.length * part)] ?? 0);
    layer.annotationDisplayState.shader.value = SHADER(column ? name : "", range);
  }

  picked(event) {
    if (event.button !== 0 || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
    if (!event.target.closest?.(".neuroglancer-rendered-data-panel")) return;
    const { mouseState, layerSelectedValues } = this.viewer;
    if (!mouseState.updateUnconditionally()) return;
    const points = this.layer(POINTS);
    const own = points?.annotationStates.states.includes(mouseState.pickedAnnotationLayer);
    if (own && mouseState.pickedAnnotationId !== undefined) {
      this.onPick(this.model.rowOf(mouseState.pickedAnnotationId));
      return;
    }
    const under = (name) => {
      const layer = this.layer(name), value = layer && layerSelectedValues.get(layer)?.value;
      const id = typeof value === "bigint" ? value : value?.key ?? value?.value;
      return typeof id === "bigint" ? id : 0n;
    };
    const soma = this.model.rowOf(under(MASKS));
    if (soma >= 0) {
      this.onPick(soma);
      return;
    }
    const rows = this.model.rowsOfSegment(under("segmentation"));
    if (rows.length) this.onPick(rows.find((row) => this.model.isShown(row)) ?? rows[0]);
  }

  /** The part of the state that a link keeps. */
  where() {
    if (!this.listening) return null;
    const all = this.viewer.state.toJSON();
    const kept = ["position", "crossSectionOrientation", "crossSectionScale", "projectionOrientation", "projectionScale", "layout"];
    return Object.fromEntries(kept.filter((key) => all[key] !== undefined).map((key) => [key, all[key]]));
  }

  /** Go to the place of a link. */
  move(view) {
    this.viewer.state.restoreState({ ...this.viewer.state.toJSON(), ...view });
    this.update();
  }

  lookForProblems() {
    const errors = this.viewer.layerManager.managedLayers.flatMap((managed) => (managed.layer?.dataSources ?? [])
      .flatMap((each) => (each.loadState?.error ? [`${managed.name}: ${each.loadState.error.message}`] : [])));
    const shader = this.layer(POINTS)?.annotationDisplayState.shaderError.value?.log;
    this.onProblem([...errors, ...(shader ? [`${POINTS}: ${shader}`] : [])].join("; "));
  }
}

/** A number as the shader's language wants it. */
const real = (value) => (Number.isInteger(value) ? `${value}.0` : value.toExponential());

/** Where the property `state` lies in a record: after the place, and the numbers of four bytes. */
function offsetOfState(properties) {
  return 12 + 4 * properties.filter((each) => each.type === "float32").length;
}
