"""The tab "LoRA Trainer" in the WebUI: all code that uses gradio or HTTP.

    callbacks.py    called by the host (scripts/lora_trainer_tab.py): the mount point, or an error
                    report, so that the tab always appears
    lazy_app.py     imports the rest after the host has started
    app.py          the services that the routes use, one instance per process
    options.py      the section on the host's Settings page
    texts.py        translations
    http/           request guard and routing
    common/, datasets/, loras/                              shared by several features
    images/, captions/, settings/, training/, comparing/    sections, each with its routes.py
    tab/            what the page loads first, and its JavaScript

gradio draws one mount point; everything else is drawn in the browser by javascript/ from JSON
routes, because the two gradio versions in use have too little in common and live content (progress,
thumbnails) needs the server's state anyway. Never imported by the worker.
"""
