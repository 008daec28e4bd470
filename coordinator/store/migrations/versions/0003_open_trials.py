"""An index of the trials under way: looking for a fold costs the same after ten thousand trials as after ten"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_trials_open",
        "trials",
        ["study_id", "number"],
        schema="foldwise",
        postgresql_where=sa.text("state IN ('ready', 'running')"),
    )
