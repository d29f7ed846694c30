// Neuroglancer in a frame of the same origin, driven through its own API (window.viewer; the version is pinned).

export const POINTS = "somas";
const MASKS = "soma_masks";
const HIDDEN = 0, SHOWN = 1, ACCEPTED = 2, REJECTED = 3, CHOSEN = 4;
const CLIENT = "/v/0/";
const START_MS = 90_000;
const SMALL_PX = 16, NEAR_PX = 120; // a soma across, on the screen
// Pixels between points, from a sample of them to all: each is tried when the one before was drawn in good time.
const SPACINGS_PX = [24, 8, 3, 1], REST_MS = 250, GOOD_MS = 400;

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
    projectionAnnotationSpacing: SPACINGS_PX[0],
    crossSectionAnnotationSpacing: SPACINGS_PX[0],
    ...(linked ? { linkedSegmentationLayer: { segment: "segmentation" } } : {}),
  });
  state.layout = "4panel";
  delete state.selectedLayer;
  return state;
}

export class Space {
  /** `onPick(row)` is called when a soma, or a segment that holds one, is clicked; `onSample(yes)` when not all points are drawn. */
  constructor(frame, model, { onPick, onProblem, onSample }) {
    Object.assign(this, { frame, model, onPick, onProblem, onSample });
    this.states = new Uint8Array(model.n).fill(SHOWN);
    this.order = shuffled(model.n);
    this.written = new WeakMap();
    this.whole = new WeakMap();
    this.finest = SPACINGS_PX.length - 1;
    this.fast = false;
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
    this.pace();
  }

  write() {
    let changed = false;
    for (const [data, source] of this.cells()) {
      if (this.written.get(data) === this.version) continue;
      this.written.set(data, this.version);
      changed = true;
      this.pack(data, source);
    }
    if (changed) this.viewer.display.scheduleRedraw();
  }

  /** Leave only shown points in a cell, in an order without pattern: the viewer draws the first ones where all are too many. */
  pack(data, source) {
    const { states, model } = this;
    if (!this.whole.has(data)) this.whole.set(data, data.serializedAnnotations);
    const whole = this.whole.get(data), all = whole.typeToIds[0], stride = whole.data.length / model.n;
    const at = offsetOfState(source.properties.value ?? source.properties);
    const rows = this.order.filter((row) => states[row] !== HIDDEN);
    if (model.chosen >= 0) rows[rows.indexOf(model.chosen)] = rows[0], rows[0] = model.chosen;
    const bytes = new Uint8Array(rows.length * stride), words = stride / 4, place = new Int32Array(model.n);
    const from = new Uint32Array(whole.data.buffer, whole.data.byteOffset, model.n * words), to = new Uint32Array(bytes.buffer);
    const ids = new Array(rows.length);
    for (let i = 0; i < rows.length; ++i) {
      const row = rows[i];
      for (let word = 0; word < words; ++word) to[i * words + word] = from[row * words + word];
      bytes[i * stride + at] = states[row];
      ids[i] = all[row];
      place[row] = i + 1;
    }
    // A map of all ids would take longer than all else here; the viewer only looks single ones up.
    const places = { get: (id) => (place[model.rowOf(id)] > 0 ? place[model.rowOf(id)] - 1 : undefined) };
    data.serializedAnnotations = {
      ...whole,
      data: bytes,
      typeToIds: whole.typeToIds.map((each, type) => (type === 0 ? ids : each)),
      typeToIdMaps: whole.typeToIdMaps.map((map, type) => (type === 0 ? places : map)),
      typeToSize: whole.typeToSize.map((size, type) => (type === 0 ? rows.length : size)),
      typeToOffset: whole.typeToOffset.map((offset, type) => (type === 0 ? 0 : bytes.length)),
    };
    data.bufferValid = false; // it goes to the graphics memory again with the next frame
    for (const each of source.spatiallyIndexedSources) each.spec.limit = Math.max(1, rows.length);
  }

  /** Draw a sample of the points while something changes, then more and more, as far as the renderer keeps up. */
  pace() {
    const layer = this.layer(POINTS);
    if (!layer) return;
    const targets = [layer.annotationProjectionRenderScaleTarget, layer.annotationCrossSectionRenderScaleTarget];
    const spacing = (step) => targets.forEach((target) => (target.value = SPACINGS_PX[step]));
    const frame = () => new Promise(requestAnimationFrame), turn = (this.turn = (this.turn ?? 0) + 1);
    if (!this.fast) spacing(0);
    setTimeout(async () => {
      for (let step = this.fast ? this.finest : 0; step <= this.finest && turn === this.turn; ++step) {
        const began = performance.now();
        spacing(step);
        for (let i = 0; i < 3; ++i) await frame();
        const took = performance.now() - began, last = SPACINGS_PX.length - 1;
        this.fast = took < GOOD_MS && step === last;
        if (took > GOOD_MS) this.finest = Math.max(0, step - 1);
        else if (took < GOOD_MS / 4 && step === this.finest && step < last) this.finest += 1; // it had been busy
        this.onSample(step < last);
      }
    }, REST_MS);
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

/** The numbers below n in an order that has nothing to do with them, the same each time. */
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let seed = 1;
  for (let i = n - 1; i > 0; --i) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((seed / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** A number as the shader's language wants it. */
const real = (value) => (Number.isInteger(value) ? `${value}.0` : value.toExponential());

/** Where the property `state` lies in a record: after the place, and the numbers of four bytes. */
function offsetOfState(properties) {
  return 12 + 4 * properties.filter((each) => each.type === "float32").length;
}
