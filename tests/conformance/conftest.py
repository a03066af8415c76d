"""The marker `image`: tests that run inside the built image, where there is one."""

from tests.conformance import image


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "image: runs steps inside the image that `make image` built; takes root and buildah; left "
        "out, and said so, where there is no image",
    )


def pytest_collection_modifyitems(config, items):
    marked = [item for item in items if item.get_closest_marker("image") is not None]
    if marked and image.missing():
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in marked]


def pytest_terminal_summary(terminalreporter):
    if image.missing():
        terminalreporter.write_line(
            f"The tests inside the image were left out: {image.missing()}.", yellow=True
        )
