"""What StatisticsGen counts: facts, labels and the targets of heads, never image bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tfx_bsl.arrow import table_util

from pipeline.features import CHANNEL_FACTS, FLOAT_FACTS, FORMAT, INT_FACTS, LABEL
from pipeline.heads import Head
from schemas import image_schema

COUNTED = (LABEL, FORMAT, *INT_FACTS, *FLOAT_FACTS, *CHANNEL_FACTS)

# TFDV compares a label's values with its domain by these lists: a class beyond their end would go
# unnoticed.
_MOST_CLASSES = 20_000
_ROWS = 4096  # a megabyte or two: facts without images


def statistics_options(heads: Sequence[Head] = ()) -> tfdv.StatsOptions:
    """Returns the options for StatisticsGen.

    Args:
      heads: those beside the label; their classes need not be known.

    The schema in them names only what is to be counted, and Beam's reader then leaves all else in
    the files: the images' bytes never reach TFDV. They hold no data (the classes come with the
    schema artifact), so that they don't change the cache key from run to run.
    """
    schema = image_schema.parse(image_schema.curated())
    uncounted = [feature.name for feature in schema.feature if feature.name not in COUNTED]
    for feature in list(schema.feature):
        if feature.name in uncounted:
            schema.feature.remove(feature)
    schema.ClearField("tensor_representation_group")
    for feature in schema.feature:
        if feature.name == LABEL:
            feature.ClearField("domain")
    for head in heads:
        kind = schema_pb2.BYTES if head.kind == "class" else schema_pb2.FLOAT
        schema.feature.add(name=head.feature, type=kind)
    return tfdv.StatsOptions(
        schema=schema,
        experimental_filter_read_paths=True,
        num_top_values=_MOST_CLASSES,
        num_rank_histogram_buckets=_MOST_CLASSES,
        num_values_histogram_buckets=2,
        num_histogram_buckets=10,
        num_quantiles_histogram_buckets=10,
        # One combiner for all features, where the default groups by each value across workers.
        use_sketch_based_topk_uniques=True,
    )


def count(
    batches: Iterable[pa.RecordBatch], options: tfdv.StatsOptions
) -> statistics_pb2.DatasetFeatureStatisticsList:
    """Returns one dataset's statistics, by the generators that TFDV's Beam transform has.

    Memory is that of a batch and of what is added up, whatever the number of batches.

    Args:
      batches: the features of the options' schema, a list a row in each column.
      options: what `statistics_options` gives.
    """
    generators = stats_impl.get_generators(options, in_memory=True)
    for generator in generators:
        generator.setup()
    sums = [generator.create_accumulator() for generator in generators]
    for batch in _joined(batches):
        sums = [
            generator.add_input(before, batch)
            for generator, before in zip(generators, sums, strict=True)
        ]
    return stats_impl.extract_statistics_output(sums, generators)


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields fewer, larger batches: adding one up costs nearly the same whatever its size."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(one.num_rows for one in waiting) >= _ROWS:
            yield table_util.MergeRecordBatches(waiting)
            waiting = []
    if waiting:
        yield table_util.MergeRecordBatches(waiting)
