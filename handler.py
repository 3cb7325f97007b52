"""What RunPod's Hub looks for: starts `multitalk runpod`."""

from engine.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["runpod"]))
