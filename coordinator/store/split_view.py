"""The split of a study, as a reader sees it: who is tested, and who chooses the epoch."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from coordinator.store.studies import study_split
from coordinator.store.tables import StudyRow
from services.contracts import SplitClip, SplitFold, SplitView


def split_view(session: Session, study: StudyRow, subjects: Mapping[str, str]) -> SplitView:
    """The split of a study; `subjects` has the subject of each clip, and is empty where they are unknown."""

    def clips(clip_ids: list[str], labels: list[int]) -> tuple[SplitClip, ...]:
        return tuple(
            SplitClip(clip_id=clip_id, label=label, subject=subjects.get(clip_id))
            for clip_id, label in zip(clip_ids, labels, strict=True)
        )

    return SplitView(
        split_hash=study.split_hash,
        classes=tuple(study.classes),
        folds=tuple(
            SplitFold(
                name=fold.name,
                clips=clips(fold.clip_ids, fold.labels),
                validation=clips(fold.validation_clip_ids, fold.validation_labels),
            )
            for fold in study_split(session, study)
        ),
    )
