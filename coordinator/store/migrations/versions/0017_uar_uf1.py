"""Ended trials keep their UAR and UF1

A confusion matrix has a row for each true class. Its recall is the diagonal over the sum of the row, its F1
twice the diagonal over the sums of row and column; classes without a clip count in neither mean.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

_FILL = """
WITH cells AS (
    SELECT r.trial_id, line.class AS truth, cell.class AS predicted, sum(cell.clips::bigint) AS clips
    FROM foldwise.results r
    JOIN foldwise.trials t ON t.id = r.trial_id AND t.state IN ('complete', 'pruned')
    CROSS JOIN json_array_elements(r.confusion) WITH ORDINALITY AS line (cells, class)
    CROSS JOIN json_array_elements_text(line.cells) WITH ORDINALITY AS cell (clips, class)
    WHERE NOT r.beyond_verdict
    GROUP BY r.trial_id, line.class, cell.class
), rows AS (
    SELECT trial_id, truth AS class, sum(clips) AS clips, sum(clips) FILTER (WHERE truth = predicted) AS correct
    FROM cells GROUP BY trial_id, truth
), columns AS (
    SELECT trial_id, predicted AS class, sum(clips) AS clips FROM cells GROUP BY trial_id, predicted
), scores AS (
    SELECT trial_id,
           avg(rows.correct::float8 / rows.clips::float8) AS uar,
           avg(2 * rows.correct::float8 / (rows.clips + columns.clips)::float8) AS uf1
    FROM rows JOIN columns USING (trial_id, class)
    WHERE rows.clips > 0
    GROUP BY trial_id
)
UPDATE foldwise.trials SET uar = scores.uar, uf1 = scores.uf1 FROM scores WHERE scores.trial_id = trials.id
"""


def upgrade() -> None:
    for name in ("uar", "uf1"):
        op.add_column("trials", sa.Column(name, sa.Float(53), nullable=True), schema="foldwise")
    op.execute(_FILL)
