"""Questions with contexts and answers."""

from optin_cli.data.spec import DataSpec
from optin_cli.data.text.samples import load_samples
from optin_cli.tasks.registry import load_task

SQUAD, SQUAD2 = load_task("squad"), load_task("squad_v2")

LETTERS = "a b c d e f g h i j k l m n o p q r s t"

ROWS = [
    {"question": "good film", "context": LETTERS, "answers": {"text": ["b c", "b"], "answer_start": [2, 2]}},
    {"question": "bad film", "context": "d e f", "answers": {"text": ["e"], "answer_start": [2]}},
    {"question": "film", "context": "g h", "answers": {"text": [], "answer_start": []}},
]


def read(path, task=SQUAD, **options):
    return load_samples(DataSpec(str(path), known=task, role=options.pop("role", "evaluation"), **options))
