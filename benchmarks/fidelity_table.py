"""The fidelity benchmark's report as a Markdown table: printed, and set into docs/explanation/quality.md."""

from typing import Any


def table(report: dict[str, Any]) -> str:
    """Conditions in one line, then a row for each recipe."""
    lines = [
        f"{report['pictures']} prompts, {report['settings']['num_inference_steps']} steps, "
        f"{report['machine']}; in brackets the worst 5%.",
        "",
        "| recipe | transformer | velocity SQNR, dB | PSNR, dB | SSIM | feature cosine | same subject |",
        "|---|---|---|---|---|---|---|",
        *(_row(row) for row in report["rows"]),
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"| {row['name']} | {row['skipped']} | | | | | |"
    psnr, ssim, cosine = (row[name] for name in ("PSNR, dB", "SSIM", "evaluator feature cosine"))
    return (
        f"| {row['name']} | {row['transformer_bytes'] / 1e6:.2f} MB "
        f"| {row['velocity SQNR, dB']['mean']:.1f} "
        f"| {psnr['mean']:.1f} ({psnr['worst']:.1f}) | {ssim['mean']:.4f} ({ssim['worst']:.3f}) "
        f"| {cosine['mean']:.4f} ({cosine['worst']:.3f}) | {row['same_subject']:.1%} |"
    )
