"""The page: an image or a webcam, words, boxes, the response map of a word. It loads nothing from elsewhere."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path

from clim.errors import UserError
from clim_commands.maps import min_max, overlay, upsample

from .service import Found, Query, ServedModel, Service, decode

# Gradio reads these when it is imported. Uploaded images and drawings lie in a folder of our own, removed at the end.
FILES = tempfile.TemporaryDirectory(prefix="clim-page-")
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": FILES.name}
import gradio as gr  # noqa: E402

KEEP_FILES = 600  # s
DRAWN = {"side": 800, "letters": 30}  # px: readable on a phone, too
FONTS = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
CSS = """
.gradio-container { max-width: 1200px !important; }
.found { width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.found tr { border: 0 !important; }
.found tr > * { padding: 4px 0 !important; border: 0 !important; text-align: right; }
.found tr > :first-child { text-align: left; }
.found tr + tr { border-top: 1px solid var(--border-color-primary) !important; }
"""


def add_page(app, service: Service, *, examples: list[Path]):
    """``app`` with the page at "/"."""
    page = build_page(service, examples)
    page.queue(max_size=service.limits.waiting, default_concurrency_limit=service.limits.waiting)
    return gr.mount_gradio_app(
        app, page, path="/", theme=gr.themes.Default(**FONTS), css=CSS, footer_links=[],
        max_file_size=service.limits.bytes, run_history=False, ssr_mode=False, mcp_server=False, show_error=False,
    )  # fmt: skip


def build_page(service: Service, examples: list[Path]) -> gr.Blocks:
    """Inputs on the left, the results of the models on the right; on a phone below each other."""
    models, default = service.models, Query()
    left, right = {"scale": 2, "min_width": 280}, {"scale": 3, "min_width": 280}
    with gr.Blocks(title="CLIM", analytics_enabled=False, delete_cache=(KEEP_FILES, KEEP_FILES)) as page:
        gr.Markdown(f"# Find objects by words\n\n{_about(models)}")
        with gr.Row():
            with gr.Column(**left):
                image = gr.Image(type="filepath", label="Image", height=300)
                image.preprocess = lambda payload: payload and payload.path  # Gradio's own decodes without our limits
                some = ", ".join(next(iter(models.values())).names[:3])
                words = gr.Textbox(label="Words", placeholder=f"{some} …", info="a, b, c; empty: the model's own words")
                with gr.Row():
                    threshold = gr.Slider(0, 1, default.threshold, step=0.001, label="Lowest score", min_width=120)
                    top = gr.Slider(1, 100, default.top, step=1, label="Most boxes", min_width=120)
                find = gr.Button("Find objects", variant="primary")
            with gr.Column(**right), gr.Row():
                results = [part for name in models for part in _result(name)]
        with gr.Row():
            with gr.Column(**left):
                word = gr.Textbox(label="Response map", info="Where does the image look like this one word?")
                respond = gr.Button("Show the map")
            with gr.Column(**right):
                if examples:
                    gr.Examples([[str(path)] for path in examples], [image], label="Examples")
        for event in (find.click, words.submit):
            event(_finder(service), [image, words, threshold, top], results, api_visibility="private")
        for event in (respond.click, word.submit):
            event(_mapper(service), [image, word], results, api_visibility="private")
    _guard(page)
    return page


def _about(models: Mapping[str, ServedModel]) -> str:
    counts = [f"**{name}** has {len(of.names)} words of its own, {len(of.novel)} novel" for name, of in models.items()]
    text = f"{'; '.join(counts)}. Novel words (★) had no boxes in training: compare their low scores with each other."
    sets = [name for model in models.values() for name in model.detector.train_sets]
    if all(name.startswith("mini_") for name in sets):
        text += " The training showed drawings only (the mini benchmark): on photos such a model finds little."
    return text


def _guard(page: gr.Blocks) -> None:
    """Let inputs name files of this page alone.

    Gradio checks that only for pages that it has launched itself: in ours, a request could read any file of the
    server. It would also load URLs.
    """
    for block in page.blocks.values():
        move = block.async_move_resource_to_block_cache
        block.async_move_resource_to_block_cache = lambda path, move=move: move(_uploaded(path))


def _uploaded(path: str | None) -> str:
    """``path``, if it is a file of this page."""
    if not path:
        raise gr.Error("Choose an image first.", print_exception=False)
    if not Path(path).resolve().is_relative_to(Path(FILES.name).resolve()):
        raise gr.Error("The page reads uploaded files only.", print_exception=False)
    return path


def _result(name: str) -> tuple[gr.Image, gr.HTML]:
    with gr.Column(min_width=240):
        options = {"interactive": False, "buttons": ["download", "fullscreen"], "elem_classes": ["result"]}
        return gr.Image(label=name, **options), gr.HTML()


def _finder(service: Service):
    async def find(path, words, threshold, top):
        async with _answering(service):
            fields = {"threshold": threshold, "top": top} | ({"words": words} if words else {})
            query = Query.read(service.limits, fields)
            found = await service.find(Path(_uploaded(path)).read_bytes(), query, list(service.models))
            return [part for of in found for part in (of.result.plot(**DRAWN), _table(of))]

    return find


def _mapper(service: Service):
    async def respond(path, word):
        async with _answering(service):
            query = Query.read(service.limits, {"words": [word]})
            return await service.call(_responses, service, Path(_uploaded(path)).read_bytes(), next(iter(query.words)))

    return respond


@asynccontextmanager
async def _answering(service: Service):
    """Hold a place, and show the sentence of an error."""
    try:
        async with service.place():
            yield
    except UserError as error:
        raise gr.Error(escape(str(error)), title="Not done", print_exception=False) from error


def _table(found: Found) -> str:
    """HTML of the detections, the highest score first."""
    result, rows = found.result, ["<tr><th>word</th><th>score</th><th>size</th></tr>"]
    for k, score, (x0, y0, x1, y1) in zip(result.classes, result.scores, result.boxes, strict=True):
        name = escape(result.names[k]) + " ★" * (k in result.novel)
        rows.append(f"<tr><td>{name}</td><td>{score:.3f}</td><td>{x1 - x0:.0f} × {y1 - y0:.0f}</td></tr>")
    counted = f"{len(result)} boxes in {found.milliseconds:.0f} ms."
    if not len(result):
        return f"<p>{counted} Nothing scores that much: lower the lowest score.</p>"
    return f'<p>{counted}</p><table class="found">{"".join(rows)}</table>'


def _responses(service: Service, data: bytes, word: str) -> list:
    """A map over the image, and what it says, for each model."""
    image, parts = decode(data, service.limits), []
    for model in service.models.values():
        cosines = model.respond(image, word)
        unit = min_max(upsample(cosines, image.shape[:2])[0].numpy())
        low, high = float(cosines.min()), float(cosines.max())
        parts += [overlay(image, unit), f"<p>{escape(word)}: cosines from {low:.2f} (dark) to {high:.2f} (bright).</p>"]
    return parts
