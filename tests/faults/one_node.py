"""`df` as one of the processes of a launcher, which writes down what it does: df's own arguments, `--out FOLDER` last.

The records lie beside the folder, those of process 1 of `out` in `out-1.record` and `out-1.work`.
"""

import os
import sys
from pathlib import Path

from df_cli.main import main
from doomed import Record

if __name__ == "__main__":
    out = Path(sys.argv[-1])
    Record(out, out.with_name(f"{out.name}-{os.environ['RANK']}"), death=None).begin()
    main()
