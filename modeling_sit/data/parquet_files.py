"""Parquet files of one split: which columns they have, and those of them that are wanted."""

import functools
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from datasets.builder import Key
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.table import table_cast

from modeling_sit.data.label_encoding import image_columns, label_columns, type_name
from modeling_sit.data.shard_files import Reading, data_files_of, shard_errors
from modeling_sit.runtime.errors import SiTError

IMAGE = datasets.Image(decode=False)
LARGE_BATCH_SIZE = 100


class WantedColumns(Parquet):
    """`datasets`' reader of parquet files, for columns of any type of Arrow. What it raises names the file."""

    def _generate_tables(self, files: list[str], row_groups_list: list) -> Iterator[tuple[Key, pa.Table]]:
        for number, (file, row_groups) in enumerate(zip(files, row_groups_list, strict=True)):
            self._file = file
            with shard_errors(file, "parquet"):
                for key, table in super()._generate_tables([file], [row_groups]):
                    yield Key(number, key.item_or_batch_id), table

    @functools.cached_property
    def _classes(self) -> dict[str, tuple[str, list[str]]]:
        """The first file that names the classes of a column, and the names."""
        return {}

    _checked: str | None = None

    def _check_class_names(self, schema: pa.Schema) -> None:
        for name in self.info.features:
            own = class_names(_feature(schema.field(name), schema.metadata))
            first_file, first = self._classes.setdefault(name, (self._file, own)) if own else (None, None)
            if own != first:
                raise SiTError(
                    f"{first_file} names the classes {_short(first)} and {self._file} names the classes {_short(own)}"
                )

    def _cast_table(self, pa_table: pa.Table) -> pa.Table:
        # Column by column, for only those that must be cast are checked: a label beyond its names is found later.
        table = pa_table.cast(plain_schema(pa_table.schema))
        if self._checked != self._file:  # once for all tables of a file
            self._check_class_names(table.schema)
            self._checked = self._file
        columns = {name: self._cast(table, name, feature) for name, feature in self.info.features.items()}
        return pa.table(columns).replace_schema_metadata(self.info.features.arrow_schema.metadata)

    def _cast(self, table: pa.Table, name: str, feature: Any) -> pa.ChunkedArray:
        try:
            if isinstance(feature, (datasets.Value, datasets.List, datasets.LargeList)):
                held, wanted = (
                    _kind(table.schema.field(name).type),
                    _kind(self.info.features.arrow_schema.field(name).type),
                )
                if held is not None and held != wanted:
                    raise TypeError(f"it holds {table.schema.field(name).type}")
            return table_cast(table.select([name]), datasets.Features({name: feature}).arrow_schema).column(0)
        except (pa.ArrowInvalid, TypeError, ValueError) as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" ...")
            raise SiTError(
                f"{self._file}: column {name} does not hold what other files have there ({type_name(feature)}): {reason}"
            ) from error


@dataclass
class ParquetFiles:
    """
    The parquet files of a split.

    Args:
        files (`list[str]` or `datasets.data_files.DataFilesList`): Their paths or addresses.
        features (`datasets.Features`): Of all columns of all files, those of the first that has the column.
        lacking (`dict` of `str` to `str`): For each column that not all files have, a file that lacks it.
        mixed (`dict` of `str` to `str`): For each column of which files hold values of different kinds, such as numbers and
            texts, what two of them hold.
        num_rows (`int`, *optional*): Number of rows, if it is known.
    """

    files: list[str]
    features: datasets.Features
    lacking: dict[str, str]
    num_rows: int | None
    mixed: dict[str, str] = field(default_factory=dict)

    def builder(self, reading: Reading) -> Parquet:
        """What reads these columns, of fields of structs the structs. It is strict.

        Raises:
            [`SiTError`]: If a file lacks one of these columns.
        """
        image = reading.image
        wanted = {image, *reading.labels, *(label.partition(".")[0] for label in reading.labels)}
        features = datasets.Features({name: self.features[name] for name in self.features if name in wanted})
        for name in features:
            if name in self.lacking:
                raise SiTError(
                    f"{self.lacking[name]} has no column {name}, but other files of split {reading.split} have",
                    argument="image_column" if name == image else "label_column",
                )
        batch_size = None
        if image is not None:
            # The images of a row group may be more than an Arrow array of type `binary` holds, which is 2 GB.
            is_large = "large_binary" in str(features[image])
            batch_size = LARGE_BATCH_SIZE if is_large else None
            features[image] = IMAGE
        # By default PyArrow keeps all that it has read of a file until the file's end: hundreds of megabytes each.
        options = pyarrow.dataset.ParquetFragmentScanOptions(pre_buffer=False)
        return WantedColumns(
            cache_dir=reading.cache_dir,
            data_files=data_files_of(reading.split, self.files),
            columns=list(features),
            features=features,
            batch_size=batch_size,
            fragment_scan_options=options,
            hash="1",
        )


def describe_parquet(
    files: list[str], schemas: Mapping[str, pa.Schema], num_rows: int | None, known: datasets.Features | None = None
) -> ParquetFiles:
    """
    Find the columns of parquet files.

    Args:
        files (`list[str]` or `datasets.data_files.DataFilesList`): Those that have rows.
        schemas (`dict` of `str` to `pa.Schema`): Of the files that were looked into.
        num_rows (`int`, *optional*): Number of rows of all files.
        known (`datasets.Features`, *optional*): What a dataset's card says of its columns. It goes before the files.
    """
    distinct: dict[pa.Schema, str] = {}
    for file, schema in schemas.items():
        distinct.setdefault(plain_schema(schema), file)
    features, types, kinds = datasets.Features(), {}, {}
    for schema, file in distinct.items():
        for column in schema:
            types.setdefault(column.name, []).append(column.type)
            kinds.setdefault(column.name, {}).setdefault(_kind(column.type), f"{file} holds {column.type}")
            if column.name not in features and (feature := _feature(column, schema.metadata)) is not None:
                features[column.name] = feature
    mixed = {
        name: " and ".join([line for kind, line in held.items() if kind][:2])
        for name, held in kinds.items()
        if len(held.keys() - {None}) > 1
    }
    mixed = {name: line for name, line in mixed.items() if not isinstance(features.get(name), datasets.ClassLabel)}
    mixed |= _other_class_names(features, schemas)
    for name in features:
        if len(set(types[name])) > 1:
            features[name] = _common_feature(features[name], types[name])
    features |= {name: feature for name, feature in (known or {}).items() if name in features}
    lacking = {name: file for name in features for schema, file in distinct.items() if name not in schema.names}
    for usable in (image_columns(features), label_columns(features, None)):
        structs = {name.partition(".")[0] if name not in features else name for name in usable}
        if not structs <= lacking.keys():  # there is one that all files have
            features = datasets.Features(
                {name: features[name] for name in features if name not in structs & lacking.keys()}
            )
    return ParquetFiles(files, features, lacking, num_rows, mixed)


def _other_class_names(features: datasets.Features, schemas: Mapping[str, pa.Schema]) -> dict[str, str]:
    """For each column of classes, two files that name them differently, if there are such: an index means another class there."""
    found: dict[str, str] = {}
    for name, feature in features.items():
        if class_names(feature) is None:
            continue
        first = None
        for file, schema in schemas.items():
            names = class_names(_feature(schema.field(name), schema.metadata)) if name in schema.names else None
            first = first or (names and (file, names))
            if names and names != first[1]:
                parts = (f"{each} names the classes {_short(classes)}" for each, classes in (first, (file, names)))
                found[name] = " and ".join(parts)
                break
    return found


def class_names(feature: Any) -> list[str] | None:
    """Of a column of classes, or of lists of them; `None` for others."""
    feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, datasets.ClassLabel) else None


def _short(names: list[str]) -> str:
    return textwrap.shorten(", ".join(names), 60, placeholder=" ...")


def _kind(type: pa.DataType) -> str | None:
    """What values of a type are, as labels: numbers, texts, lists of them. `None` if all are null."""
    if pa.types.is_null(type):
        return None
    if pa.types.is_integer(type) or pa.types.is_floating(type):
        return "number"
    if pa.types.is_string(type) or pa.types.is_large_string(type):
        return "text"
    if pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        kind = _kind(type.value_type)
        return kind and f"list of {kind}"
    return str(type)


def _feature(field: pa.Field, metadata: dict | None) -> Any:
    """The feature of a column; `None` if the `datasets` library has none for its type."""
    try:
        return datasets.Features.from_arrow_schema(pa.schema([field], metadata=metadata))[field.name]
    except (ValueError, NotImplementedError):
        return None


def _common_feature(first: Any, types: list[pa.DataType]) -> Any:
    """One feature for a column of several types: the first, if there is none that holds all their values."""
    if isinstance(first, (datasets.Image, datasets.ClassLabel)):
        return first
    try:
        unified = pa.unify_schemas([pa.schema([("", type)]) for type in types], promote_options="permissive")
        return datasets.Features.from_arrow_schema(unified)[""]
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError, NotImplementedError):
        columns = {str(number): _feature(pa.field("", type), None) for number, type in enumerate(types)}
        return IMAGE if len(image_columns(columns)) == len(types) else first


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns without views and dictionaries, which the `datasets` library does not cast."""
    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema], metadata=schema.metadata)


def _plain_type(type: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type):
        return _plain_type(type.value_type)
    if pa.types.is_binary_view(type):
        return pa.large_binary()
    if pa.types.is_string_view(type):
        return pa.large_string()
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in type])
    if pa.types.is_fixed_size_list(type):
        return pa.list_(_plain_type(type.value_type), type.list_size)
    if pa.types.is_large_list(type) or pa.types.is_large_list_view(type):
        return pa.large_list(_plain_type(type.value_type))
    if pa.types.is_list(type) or pa.types.is_list_view(type):
        return pa.list_(_plain_type(type.value_type))
    return type


def describe_parquet_paths(paths: list[str]) -> ParquetFiles:
    """Those of these local files that have rows, or the first if none has.

    Raises:
        [`SiTError`]: Naming a file that cannot be read.
    """
    footers = {}
    for path in paths:
        with shard_errors(path, "parquet"):
            footers[path] = pq.read_metadata(path)
    filled = [path for path in paths if footers[path].num_rows > 0] or paths[:1]
    schemas = {path: footers[path].schema.to_arrow_schema() for path in filled}
    return describe_parquet(filled, schemas, sum(footers[path].num_rows for path in filled))
