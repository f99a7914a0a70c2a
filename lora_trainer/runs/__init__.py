"""The run folder: the interface between the process that starts a run and its worker.

    output_dir/
      config.yaml       the complete, resolved settings; running it again reproduces the run.
                        A caption job has a caption.yaml instead
      events.jsonl      one JSON object a line, appended by the worker only (events.py)
      requests/         stop, save, preview, pause, resume: taken by the worker (requests.py)
      worker.json       pid, start time, heartbeat, versions
      worker.lock       locked while the worker lives
      worker.log        stdout and stderr of the worker and its libraries
      worker-2.log      the same of process 2, of a run on several devices
      ended.json        a failure that the worker could not report (killed, crashed), written by the
                        process that watched it; ignored once a later event exists
      host.json         the process that the worker ends with, if any
      begin.lock        locked while a run is being created here
      checkpoints/      NAME-step00000100.safetensors: usable LoRA files
      state/            what an exact resume needs
      previews/  logs/  images; TensorBoard
      verdict.json      best step and strength, findings (verdict/); report.html shows it to people
      NAME.safetensors  the LoRA file
      adapter/NAME/     of a language model: the LoRA in PEFT's format; so are its saved steps in
                        checkpoints/
      merged/NAME/      of a language model: the base with the LoRA merged into it

state.py folds the events into a RunState. Standard library only.
"""
