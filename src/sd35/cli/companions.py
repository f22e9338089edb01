"""Flags for what a single file lacks, the same for every verb that reads one."""

import argparse


def add_companions(parser: argparse.ArgumentParser) -> None:
    """`--components` and `--text-encoders`."""
    parser.add_argument(
        "--components", help="the folder with configs, tokenizers and encoders that a single file lacks"
    )
    parser.add_argument(
        "--text-encoders",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="text encoders in files of their own beside a single file, such as clip_l, clip_g and t5xxl; "
        "which is which is seen from their contents",
    )
