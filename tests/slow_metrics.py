"""Metrics in slow and obvious loops, of one query each, as the official programs define them."""

Window = tuple[float, float, float]
Moment = tuple[float, float]


def slow_iou(a: Moment, b: Moment) -> float:
    common = max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
    return common / ((a[1] - a[0]) + (b[1] - b[0]) - common)


def slow_hull_iou(a: Moment, b: Moment) -> float:
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) / (max(a[1], b[1]) - min(a[0], b[0]))


def slow_first_iou(windows: list[Window], moments: list[Moment]) -> float:
    first = windows[0][:2]
    best = max(moments, key=lambda moment: slow_iou(first, moment))  # max takes the first of equals
    return slow_hull_iou(first, best)


def slow_average_precision(windows: list[Window], moments: list[Moment], threshold: float) -> float:
    ranked = sorted(windows[:10], key=lambda window: -window[2])
    free = list(range(len(moments)))
    precision, recall, found = [], [], 0
    for rank, window in enumerate(ranked, start=1):
        if free:
            # The later index wins on equal IoU.
            best = max(free, key=lambda j: (slow_iou(window[:2], moments[j]), j))
            if slow_iou(window[:2], moments[best]) >= threshold:
                free.remove(best)
                found += 1
        precision.append(found / rank)
        recall.append(found / len(moments))
    area, before = 0.0, 0.0
    for i, value in enumerate(recall):
        area += (value - before) * max(precision[i:])
        before = value
    return area


def slow_highlight_precision(scores: list[float], positive: list[bool]) -> float:
    points = []
    for cut in sorted(set(scores), reverse=True):
        picked = [p for score, p in zip(scores, positive, strict=True) if score >= cut]
        points.append((sum(picked), len(picked)))
    rises = [i for i, (found, _) in enumerate(points) if found > (points[i - 1][0] if i else 0)]
    if not rises:
        return 0.0
    return sum(max(found / size for found, size in points[i:]) for i in rises) / len(rises)


def percent(values: list[float]) -> float:
    return 100 * sum(values) / len(values) if values else 0.0
