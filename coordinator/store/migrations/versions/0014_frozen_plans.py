"""A study's compute plan is frozen with its first lease

Studies under way keep what their settings said. Their workers chose memory format and threads themselves, so
both stay open.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("studies", sa.Column("plan", sa.JSON(), nullable=True), schema="foldwise")
    op.execute(
        "UPDATE foldwise.studies SET plan = json_build_object("
        "'precision', spec->'compute'->'precision', 'compiled', spec->'compute'->'compiled',"
        " 'memory_format', NULL, 'threads', NULL)"
        " WHERE EXISTS (SELECT FROM foldwise.trials JOIN foldwise.leases ON leases.trial_id = trials.id"
        " WHERE trials.study_id = studies.id)"
        " OR EXISTS (SELECT FROM foldwise.trials JOIN foldwise.results ON results.trial_id = trials.id"
        " WHERE trials.study_id = studies.id)"
    )
