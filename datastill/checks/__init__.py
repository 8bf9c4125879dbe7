"""Conformance kits for authors of modalities and objectives, like scikit-learn's `check_estimator`.

    from datastill.checks import check_modality, check_objective
    check_modality(MyModality(small_data))
    check_objective(lambda: MyObjective(strength=2.0))

Each says in plain words what is wrong. `MODALITY_CHECKS` and `OBJECTIVE_CHECKS` list the single checks, to be run one by one.
"""

from datastill.checks.modality import MODALITY_CHECKS as MODALITY_CHECKS
from datastill.checks.modality import check_modality as check_modality
from datastill.checks.objective import OBJECTIVE_CHECKS as OBJECTIVE_CHECKS
from datastill.checks.objective import check_objective as check_objective
from datastill.checks.tools import CheckFailed as CheckFailed
from datastill.checks.tools import check_resume as check_resume
from datastill.checks.toy import ToyModality as ToyModality
