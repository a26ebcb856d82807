"""A real browser without a window, for tests of pages."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import absent

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# WebGPU on the processor: no machine that runs tests need have a GPU.
FLAGS = (
    *("--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    *("--enable-features=Vulkan", "--use-vulkan=swiftshader", "--use-angle=vulkan"),
)
# The software adapter has no 16-bit floats, which Embedding Atlas computes in; a person's browser
# has a real GPU. Here its shaders compute in 32 bits instead, in storage buffers twice as large.
_WIDE_FLOATS = """
if (globalThis.GPUAdapter) {
  const has = GPUSupportedFeatures.prototype.has;
  GPUSupportedFeatures.prototype.has = function (name) {
    return name === 'shader-f16' || has.call(this, name);
  };
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (wanted) {
    const names = (wanted?.requiredFeatures ?? []).filter((name) => name !== 'shader-f16');
    const device = await request.call(this, {...wanted, requiredFeatures: names});
    const tell = (event) => console.error('WebGPU: ' + event.error.message);
    device.addEventListener('uncapturederror', tell);
    const shader = device.createShaderModule.bind(device);
    device.createShaderModule = (made) => shader({
      ...made,
      code: made.code.replace(/enable f16;/g, '').replace(/\\bf16\\b/g, 'f32')
        .replace(/\\bvec([234])h\\b/g, 'vec$1f'),
    });
    const buffer = device.createBuffer.bind(device);
    device.createBuffer = (made) => buffer(
      made.usage & GPUBufferUsage.STORAGE ? {...made, size: 2 * made.size} : made
    );
    return device;
  };
}
"""


@dataclass(frozen=True)
class Tab:
    """An open page, every address that it asked for, and what went wrong in it or on its GPU."""

    page: Any
    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def note(self, said: str) -> None:
        """Takes down what the page's console says of the GPU."""
        if "WebGPU: " in said:
            self.errors.append(said)

    def pixels(self) -> NDArray[np.int64]:
        """What is seen of the page now, (height, width, 3)."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        return np.asarray(shot).astype(np.int64)

    def asked_of_others(self, own: str) -> list[str]:
        """Addresses outside of `own` that were asked for; data in the page itself is none."""
        return [url for url in self.asked if not url.startswith((own, "data:", "blob:"))]


@contextmanager
def open_tab(url: str, *, width: int = 1400, height: int = 900) -> Iterator[Tab]:
    """Opens an address; fails in CI and skips elsewhere where no browser is installed."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        absent("no browser: hpc/install-test-system installs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            tab = Tab(page)
            page.on("request", lambda request: tab.asked.append(request.url))
            page.on("pageerror", lambda error: tab.errors.append(str(error)))
            page.on("console", lambda said: tab.note(said.text))
            page.add_init_script(_WIDE_FLOATS)
            page.goto(url, timeout=60_000)
            yield tab
        finally:
            browser.close()
