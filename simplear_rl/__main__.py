"""`python -m simplear_rl` lists the commands, in the order of the pipeline."""

import argparse

COMMANDS = {
    "create_policy": "a policy folder to start from: of a language model, a published checkpoint or a policy",
    "tokenize": "token shards of your own images and captions",
    "pretrain": "next-token prediction on token shards",
    "sft": "supervised fine-tuning: the same on curated data",
    "dpo": "preference optimisation: on stored pairs of images, or on pairs that it draws",
    "grpo": "reinforcement learning with image rewards",
    "evaluate": "images for a benchmark's prompts, their scores, and a page that shows both",
    "score": "scores of your own images, to try a reward before training on it",
    "compare": "two policies on the same prompts and seeds, pictures in pairs",
    "report": "a page of one run, or of several side by side",
    "generate": "images for your own prompts",
    "reward_model": "a reward model from human labels, on frozen CLIP features",
    "label": "a page on which people choose the better one of two images",
    "serve": "an OpenAI Images API and a page, pictures that appear row by row",
    "demo": "the whole pipeline on the miniature world, with a report",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m simplear_rl",
        usage="python -m simplear_rl.COMMAND [--help] ...",
        epilog="\n".join(
            [
                "commands, in the order of the pipeline:",
                *(f"  {name:15}{about}" for name, about in COMMANDS.items()),
                "\npython -m simplear_rl.grpo --help explains a command, its options and its keys.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    parser.print_help()
