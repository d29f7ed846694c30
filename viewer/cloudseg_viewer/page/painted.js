// What is painted at most once in a frame, however often it is asked to draw.

export class Painted {
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.paint();
    });
  }
}
