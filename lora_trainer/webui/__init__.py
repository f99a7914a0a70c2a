"""The tab "LoRA Trainer" inside the WebUI: everything that knows gradio or HTTP.

    callbacks.py    what the host calls (scripts/lora_trainer_tab.py): draws the mount point, or the
                    reason where something is wrong, so that the tab always appears
    lazy_app.py     imports the rest once the host is up, and answers from then on
    app.py          what the routes work with, one per process
    options.py      our section on the host's Settings page
    texts.py        languages
    http/           the guard and the table of routes
    common/, datasets/, loras/                              what several features share
    images/, captions/, settings/, training/, comparing/    the tab's sections, each with its
                                                            routes.py, a few lines a handler
    tab/            what the page needs when it opens, and its JavaScript

gradio draws one mount point; all else is drawn in the browser by javascript/ from JSON routes. The
two gradio versions in use share too little, and what is live (progress, thumbnails, two browsers)
has to come from the server's truth anyway. Never imported by the worker.
"""
