"""The figures of plugins/sdk/src/scores.rs's tests, by scikit-learn 1.9:

    pip install scikit-learn==1.9.1 && python3 tests/measure/metrics.py
"""

import warnings

import numpy as np
from sklearn import metrics

warnings.filterwarnings("ignore")
i, classes = np.arange(12)[:, None], np.arange(4)[None]
labels = np.array([0, 1, 3, 0, 0, 3, 1, 1, 0, 3, 0, 1])
own = labels[:, None] == classes
raw = ((i * 7 + classes * 5 + i * i * (classes + 1)) % 9 + 1 + 2 * own).astype(np.float32)
probabilities = raw / raw.sum(1, keepdims=True)
predicted = probabilities.argmax(1)
occurring = own.any(0)


def score(name, average):
    function = getattr(metrics, f"{name}_score")
    return function(labels, predicted, average=average, zero_division=0)


def top(count):
    # scikit-learn puts the higher class first where probabilities are equal, Hangar the lower one.
    reversed_classes = probabilities[:, ::-1]
    return 100 * metrics.top_k_accuracy_score(3 - labels, reversed_classes, k=count, labels=range(4))


for name, value in {
    "val_acc": 100 * metrics.accuracy_score(labels, predicted),
    "macro_f1": score("f1", "macro"),
    "micro_f1": score("f1", "micro"),
    "mAP": metrics.average_precision_score(
        own[:, occurring], probabilities[:, occurring], average="macro"
    ),
    "top1_acc": top(1),
    "top3_acc": top(3),
    "top5_acc": top(5),
    "macro_precision": score("precision", "macro"),
    "macro_recall": score("recall", "macro"),
    "micro_precision": score("precision", "micro"),
    "micro_recall": score("recall", "micro"),
    "precision": score("precision", "weighted"),
    "recall": score("recall", "weighted"),
}.items():
    print(f'        ("{name}", {value:.12f}),')
