"""`df audit-agreement`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from df_cli import options
from df_cli.report import agreement_table, make_console, print_outcome


def audit_agreement(
    episodes: options.Episodes,
    labels: Annotated[Path, typer.Option("--labels", help="Labels: the sheet filled in, as .csv or .parquet.")],
    out: options.Out,
    sample: Annotated[
        Path | None,
        typer.Option("--sample", help="Output of df audit-sample: estimate for all audited repairs, by its strata."),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
) -> None:
    """Compare the auditor's verdicts with a person's labels: agreement, Cohen's kappa, error rates with intervals."""
    from stages.artifacts.columns import AUDIT_AGREEMENT
    from stages.artifacts.stage import execute
    from stages.artifacts.store import iterate_rows
    from stages.audit_agreement import AuditAgreement
    from stages.runtime.processes import is_main

    outcome = execute(AuditAgreement(episodes, labels, sample), out, overwrite=overwrite, dry_run=dry_run)
    if not is_main():
        return
    print_outcome(outcome)
    if outcome.manifest is not None:
        rows = iterate_rows(out / f"{AUDIT_AGREEMENT.name}.parquet", AUDIT_AGREEMENT)
        make_console().print(agreement_table(rows))
