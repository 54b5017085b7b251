"use strict";
(() => {
  const data = JSON.parse(document.getElementById("record-data").textContent);
  const listeners = []; // called with the index of the chosen step
  const stepper = document.querySelector(".stepper");
  const slider = stepper.querySelector(".step");
  const make = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  function choose(index) {
    slider.value = index;
    slider.setAttribute("aria-valuetext", data.steps[index]);
    stepper.querySelector(".step-name").textContent = data.steps[index];
    const readouts = Object.entries(data.readouts).map(([name, values]) => {
      const span = make("span", name + " ");
      span.append(make("b", values[index]));
      return span;
    });
    stepper.querySelector(".readouts").replaceChildren(...readouts);
    listeners.forEach((listener) => listener(index));
  }

  // A line at the chosen step in every panel over training; a click chooses the nearest step.
  function linkPanels() {
    for (const svg of document.querySelectorAll("svg[data-cursors]")) {
      const panels = JSON.parse(svg.dataset.cursors);
      const lines = panels.map(([top, bottom]) => {
        const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
        line.setAttribute("class", "cursor");
        line.setAttribute("y1", top);
        line.setAttribute("y2", bottom);
        svg.append(line);
        return line;
      });
      listeners.push((index) =>
        lines.forEach((line, k) => ["x1", "x2"].forEach((end) => line.setAttribute(end, panels[k][2][index])))
      );
      svg.addEventListener("click", (event) => {
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        const panel = panels.find(
          ([top, bottom, x]) => at.y >= top && at.y <= bottom && at.x >= x[0] - 8 && at.x <= x[x.length - 1] + 8
        );
        if (panel) choose(nearest(panel[2], at.x));
      });
    }
  }

  function nearest(values, target) {
    return values.reduce((best, value, k) => (Math.abs(value - target) < Math.abs(values[best] - target) ? k : best), 0);
  }

  function startStepper() {
    const play = stepper.querySelector(".play");
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = "▶";
      play.setAttribute("aria-label", "Play training");
    };
    slider.max = data.steps.length - 1;
    slider.addEventListener("input", () => (stop(), choose(+slider.value)));
    play.addEventListener("click", () => {
      if (timer !== null) return stop();
      if (+slider.value === data.steps.length - 1) choose(0);
      play.textContent = "❚❚";
      play.setAttribute("aria-label", "Pause");
      timer = setInterval(() => {
        choose(Math.min(+slider.value + 1, data.steps.length - 1));
        if (+slider.value === data.steps.length - 1) stop();
      }, 350);
    });
    stepper.hidden = data.steps.length < 2;
    choose(data.steps.length - 1);
  }

  // Trajectories in three dimensions: no perspective, near parts stronger than far ones.
  function startViewer(viewer, paths) {
    const [, trials, times] = paths.shape;
    const values = unpack(paths.values);
    const canvas = viewer.querySelector("canvas");
    const clock = viewer.querySelector(".time");
    const home = { turn: -0.6, tilt: 0.42, zoom: 1 };
    let view = { ...home };
    let step = paths.steps.length - 1;
    let pending = false;
    const shown = new Array(trials).fill(true);
    const frames = [];
    const redraw = () => {
      if (!pending) requestAnimationFrame(() => ((pending = false), draw()));
      pending = true;
    };

    // Middle and half diagonal of the box around a step's trajectories: every step fills the view.
    function frame(k) {
      if (!frames[k]) {
        const low = [Infinity, Infinity, Infinity];
        const high = [-Infinity, -Infinity, -Infinity];
        for (let i = k * trials * times * 3; i < (k + 1) * trials * times * 3; i++) {
          if (values[i] === -32768) continue;
          low[i % 3] = Math.min(low[i % 3], values[i]);
          high[i % 3] = Math.max(high[i % 3], values[i]);
        }
        const middle = low.map((value, axis) => (value + high[axis]) / 2);
        frames[k] = { middle, reach: Math.hypot(...low.map((value, axis) => (high[axis] - value) / 2)) || 1 };
      }
      return frames[k];
    }

    function projector(width, height) {
      const { middle, reach } = frame(step);
      const scale = (0.55 * view.zoom * Math.min(width, height)) / reach;
      const [ct, st, ce, se] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.tilt), Math.sin(view.tilt)];
      return (x, y, z) => {
        [x, y, z] = [x - middle[0], y - middle[1], z - middle[2]];
        const across = ct * x - st * y;
        const away = st * x + ct * y;
        return [width / 2 + scale * across, height * 0.46 - scale * (ce * z + se * away), ce * away - se * z];
      };
    }

    function point(project, trial, time) {
      const i = ((step * trials + trial) * times + time) * 3;
      return values[i] === -32768 ? null : project(values[i], values[i + 1], values[i + 2]);
    }

    // Runs of a few points each, so that depth orders them.
    function runs(project) {
      const found = [];
      for (let trial = 0; trial < trials; trial++) {
        if (!shown[trial]) continue;
        const points = Array.from({ length: times }, (_, time) => point(project, trial, time));
        for (let start = 0; start < times - 1; start += 6) {
          const run = points.slice(start, start + 7);
          if (run.every(Boolean)) found.push({ trial, run, depth: run[0][2], past: start < +clock.value });
        }
      }
      return found.sort((a, b) => b.depth - a.depth);
    }

    function draw() {
      const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
      if (!width || !height) return;
      canvas.width = width * ratio;
      canvas.height = height * ratio;
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      pen.lineJoin = "round";
      const project = projector(width, height);
      const { reach } = frame(step);
      for (const { trial, run, depth, past } of runs(project)) {
        const near = 0.5 - depth / (2 * reach);
        pen.globalAlpha = (past ? 1 : 0.25) * (0.35 + 0.65 * near);
        pen.lineWidth = 0.8 + 1.2 * near;
        pen.strokeStyle = paths.colours[trial];
        pen.beginPath();
        run.forEach(([x, y], k) => (k ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        pen.stroke();
      }
      drawDots(pen, project);
      drawAxes(pen, height);
    }

    function drawDots(pen, project) {
      const paper = getComputedStyle(canvas).backgroundColor;
      pen.globalAlpha = 1;
      pen.lineWidth = 1.8;
      for (let trial = 0; trial < trials; trial++) {
        const at = shown[trial] && point(project, trial, +clock.value);
        if (!at) continue;
        pen.fillStyle = paper;
        pen.strokeStyle = paths.colours[trial];
        pen.beginPath();
        pen.arc(at[0], at[1], 3.2, 0, 7);
        pen.fill();
        pen.stroke();
      }
    }

    function drawAxes(pen, height) {
      const style = getComputedStyle(canvas);
      const [ct, st, ce, se] = [Math.cos(view.turn), Math.sin(view.turn), Math.cos(view.tilt), Math.sin(view.tilt)];
      const tips = [[ct, -se * st], [-st, -se * ct], [0, -ce]];
      const origin = [52, height - 46];
      pen.font = "12px " + style.fontFamily;
      pen.fillStyle = pen.strokeStyle = style.color;
      pen.textBaseline = "middle";
      pen.lineWidth = 1;
      pen.globalAlpha = 0.75;
      tips.forEach(([x, y], k) => {
        const share = paths.shares ? " " + paths.shares[step][k] : "";
        pen.beginPath();
        pen.moveTo(...origin);
        pen.lineTo(origin[0] + 26 * x, origin[1] + 26 * y);
        pen.stroke();
        pen.textAlign = x < -0.2 ? "right" : x > 0.2 ? "left" : "center";
        pen.fillText("PC " + (k + 1) + share, origin[0] + 33 * x, origin[1] + 36 * y);
      });
    }

    function turn(across, down) {
      view.turn += across;
      view.tilt = Math.max(-1.57, Math.min(1.57, view.tilt + down));
      redraw();
    }

    function zoom(factor) {
      view.zoom = Math.max(0.4, Math.min(8, view.zoom * factor));
      redraw();
    }

    const fingers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (!last) return;
      const spread = () => {
        const [a, b] = [...fingers.values()];
        return Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      };
      const before = fingers.size === 2 ? spread() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) zoom(spread() / before);
      else turn((event.clientX - last[0]) * 0.01, (event.clientY - last[1]) * 0.01);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    }
    canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
        event.preventDefault();
        zoom(Math.exp(-event.deltaY * 0.003));
      },
      { passive: false }
    );
    const keys = {
      ArrowLeft: () => turn(-0.1, 0),
      ArrowRight: () => turn(0.1, 0),
      ArrowUp: () => turn(0, -0.1),
      ArrowDown: () => turn(0, 0.1),
      "+": () => zoom(1.15),
      "-": () => zoom(1 / 1.15),
    };
    canvas.addEventListener("keydown", (event) => {
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    clock.max = times - 1;
    clock.value = times - 1;
    clock.addEventListener("input", redraw);
    viewer.querySelector(".home").addEventListener("click", () => ((view = { ...home }), redraw()));
    addGroups(viewer.querySelector(".groups"), paths, shown, redraw);
    listeners.push((index) => ((step = nearest(paths.steps, index)), redraw()));
    new ResizeObserver(redraw).observe(canvas);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    viewer.hidden = false;
  }

  function addGroups(place, paths, shown, redraw) {
    place.append(make("span", paths.condition));
    for (const [name, colour, members] of paths.groups) {
      const button = make("button", name);
      button.type = "button";
      button.style.setProperty("--swatch", colour);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        members.forEach((trial) => (shown[trial] = on));
        redraw();
      });
      place.append(button);
    }
  }

  function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, k) => view.getInt16(2 * k, true));
  }

  const viewer = document.querySelector(".viewer");
  if (viewer && data.trajectory) startViewer(viewer, data.trajectory);
  linkPanels();
  startStepper();
})();
