"""`lm-eval run`, once for each JSON list of options, in one process. Usage: python lm_eval_runs.py OPTIONS...

To import it takes longer than a run, and so does reading the thousands of files of its own tasks: these are left out.
"""

import json
import sys

import lm_eval.tasks
from lm_eval._cli import HarnessCLI


class OnlyGivenTasks(lm_eval.tasks.TaskManager):
    def __init__(self, **options):
        super().__init__(**options, include_defaults=False)


if __name__ == "__main__":
    lm_eval.tasks.TaskManager = OnlyGivenTasks
    for options in sys.argv[1:]:
        sys.argv[1:] = ["run", *json.loads(options)]
        cli = HarnessCLI()
        cli.execute(cli.parse_args())
