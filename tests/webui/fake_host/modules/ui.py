"""The page: txt2img, img2img, the extensions' tabs, Settings. Element ids are the hosts'."""

from __future__ import annotations

import gradio as gr
from modules import (
    calls,
    infotext_utils,
    processing,
    script_callbacks,
    scripts,
    sd_samplers,
    shared,
    ui_extra_networks,
)
from modules.call_queue import wrap_gradio_gpu_call

JS = infotext_utils.JS


def create_ui():
    infotext_utils.reset()
    interfaces = []
    for is_img2img in (False, True):
        name = "img2img" if is_img2img else "txt2img"
        runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
        runner.initialize_scripts(is_img2img)
        with gr.Blocks(analytics_enabled=False) as interface:
            _draw_generation(name, runner, interface)
        interfaces.append((interface, name, name))
    script_callbacks.ui_settings_callback()
    settings = _settings()
    interfaces += script_callbacks.ui_tabs_callback()
    interfaces.append((settings, "Settings", "settings"))
    shared.tab_names = [label for _, label, _ in interfaces]
    with gr.Blocks(
        theme=shared.gradio_theme, analytics_enabled=False, title="Stable Diffusion"
    ) as demo:
        infotext_utils.connect_paste_params_buttons()
        gr.Textbox(elem_id="settings_json", value=lambda: shared.opts.dumpjson(), visible=False)
        with gr.Tabs(elem_id="tabs"):
            for interface, label, ifid in interfaces:
                with gr.TabItem(label, id=ifid, elem_id=f"tab_{ifid}"):
                    interface.render()
    return demo


def _draw_generation(name, runner, interface):
    """Prompts, a few numbers, Generate, the result; and the Lora page."""
    with gr.Row(elem_id=f"{name}_toprow"):
        with gr.Column(elem_id=f"{name}_prompt_container", scale=6):
            prompt = gr.Textbox(
                label="Prompt",
                elem_id=f"{name}_prompt",
                show_label=False,
                lines=3,
                placeholder="Prompt",
                elem_classes=["prompt"],
            )
            negative = gr.Textbox(
                label="Negative prompt",
                elem_id=f"{name}_neg_prompt",
                show_label=False,
                lines=3,
                elem_classes=["prompt"],
            )
        with gr.Column(scale=1, elem_id=f"{name}_actions_column"):
            submit = gr.Button("Generate", elem_id=f"{name}_generate", variant="primary")
            interrupt = gr.Button("Interrupt", elem_id=f"{name}_interrupt")
    with gr.Tabs(elem_id=f"{name}_extra_tabs"):
        with gr.Tab("Generation", id=f"{name}_generation"), gr.Row():
            with gr.Column(elem_id=f"{name}_settings"):
                sampler = gr.Dropdown(
                    sd_samplers.visible_sampler_names(),
                    value="Euler",
                    label="Sampling method",
                    elem_id=f"{name}_sampling",
                )
                steps = gr.Slider(
                    1, 150, step=1, value=20, label="Sampling steps", elem_id=f"{name}_steps"
                )
                width = gr.Slider(
                    64, 2048, step=8, value=64, label="Width", elem_id=f"{name}_width"
                )
                height = gr.Slider(
                    64, 2048, step=8, value=64, label="Height", elem_id=f"{name}_height"
                )
                cfg = gr.Slider(
                    1.0, 30.0, step=0.5, value=7.0, label="CFG Scale", elem_id=f"{name}_cfg_scale"
                )
                seed = gr.Number(value=-1, label="Seed", precision=0, elem_id=f"{name}_seed")
                runner.prepare_ui()
                runner.setup_ui_for_section(None)
            with gr.Column(elem_id=f"{name}_results"):
                gallery = gr.Gallery(label="Output", elem_id=f"{name}_gallery")
                info = gr.HTML(elem_id=f"html_info_{name}")
        with gr.Tab("Lora", elem_id=f"{name}_lora"):
            _draw_cards(name, interface)
    fields = [
        (prompt, "Prompt"),
        (negative, "Negative prompt"),
        (steps, "Steps"),
        (sampler, "Sampler"),
        (cfg, "CFG scale"),
        (seed, "Seed"),
        (width, "Size-1"),
        (height, "Size-2"),
    ]
    infotext_utils.add_paste_fields(name, None, fields)

    def generate(prompt, negative, sampler, steps, width, height, cfg, seed, *script_args):
        p = processing.StableDiffusionProcessingTxt2Img(
            prompt=prompt,
            negative_prompt=negative,
            sampler_name=sampler,
            steps=int(steps),
            width=int(width),
            height=int(height),
            cfg_scale=cfg,
            seed=int(seed),
        )
        p.scripts, p.script_args = runner, [None, *script_args]
        calls.record("generate pressed", prompt=prompt)
        try:
            processed = in_main_thread(processing.process_images, p)
        except Exception as error:
            return [], f"<div class='error'>{type(error).__name__}: {error}</div>"
        return (
            processed.images,
            f"<p>{processed.info}</p><p class='comments'>{processed.comments}</p>",
        )

    inputs = [prompt, negative, sampler, steps, width, height, cfg, seed, *runner.inputs[1:]]
    submit.click(fn=wrap_gradio_gpu_call(generate), inputs=inputs, outputs=[gallery, info])
    interrupt.click(fn=shared.state.interrupt, inputs=[], outputs=[])


def in_main_thread(function, *arguments):
    """Forge makes all images in one thread of its own."""
    if shared.cmd_opts.flavour != "forge":
        return function(*arguments)
    from modules_forge import main_thread

    result = main_thread.run_and_wait_result(function, *arguments)
    if main_thread.last_exception is not None:
        raise main_thread.last_exception
    return result


def _draw_cards(name, interface):
    """The cards are kept for all visitors until somebody presses Refresh, or the kept HTML is
    empty.
    """
    kept: list[str] = []
    pages = [
        gr.HTML(
            page.create_html(name, empty=True),
            elem_id=f"{name}_{page.extra_networks_tabname}_cards_html",
        )
        for page in ui_extra_networks.extra_pages
    ]

    def create():
        kept[:] = [page.create_html(name) for page in ui_extra_networks.extra_pages]
        return kept[0] if len(kept) == 1 else kept

    def show():
        return create() if not kept else (kept[0] if len(kept) == 1 else kept)

    def refresh():
        for page in ui_extra_networks.extra_pages:
            page.refresh()
        return create()

    gr.Button("Refresh", elem_id=f"{name}_lora_extra_refresh_internal").click(
        fn=refresh, inputs=[], outputs=pages
    )
    interface.load(fn=show, inputs=[], outputs=pages)


def _settings():
    with gr.Blocks(analytics_enabled=False) as interface:
        restart = gr.Button("Reload UI", variant="primary", elem_id="settings_restart_gradio")
        restart.click(
            fn=shared.state.request_restart, inputs=[], outputs=[], **{JS: "restart_reload"}
        )
        for key, option in shared.opts.data_labels.items():
            if not option.section:
                continue
            component = option.component or (
                gr.Checkbox if isinstance(option.default, bool) else gr.Textbox
            )
            arguments = (
                option.component_args()
                if callable(option.component_args)
                else option.component_args or {}
            )
            value = shared.opts.data.get(key, option.default)
            component(
                label=option.label,
                value=value if component is not gr.Textbox else str(value),
                elem_id=f"setting_{key}",
                **arguments,
            )
    return interface
