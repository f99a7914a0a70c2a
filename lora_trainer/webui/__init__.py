"""The tab "LoRA Trainer" inside the WebUI: everything that knows gradio, HTTP or the host.

    scripts/lora_trainer_tab.py   the host runs it: callbacks -> tab.py
    tab.py        draws the mount point, and the reason where something is wrong: the tab always
                  appears
    late.py       imports the rest once the host is up, and hangs in the routes
    http.py       the guard and the table of routes;  routes/  one file an area, a few lines a
                                                               handler
    studio.py     what the handlers work with, one per process
    texts.py      languages

gradio draws one mount point; all else is drawn in the browser by javascript/ from JSON routes. The
two gradio versions in use share too little, and what is live (progress, thumbnails, two browsers)
has to come from the server's truth anyway. Never imported by the worker.
"""
