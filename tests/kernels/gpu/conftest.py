"""Triton's interpreter patches its language once a launch and module here, not at every call within a kernel."""

from kernels.interpreter import interpreting


def patch_once_a_launch():
    """Spare the interpreter a good part of its time; what a kernel computes stays the same."""
    from triton.runtime import interpreter

    patch, launch, done = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def patch_once(function):
        module = id(function.__globals__)
        if module in done:
            return None
        done.add(module)
        return patch(function)

    def launch_anew(self, *arguments, **options):
        done.clear()  # at its end a launch undoes what it has patched
        return launch(self, *arguments, **options)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_anew


if interpreting():
    patch_once_a_launch()
