# For ./start and ./test, which run it with `.` in the repository's root: a virtual environment that is up to date.

# The first interpreter that this project runs on; python3 itself if it is one of them.
find_python() {
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "Python 3.10 to 3.14 is needed, and none was found: install one of them and run this again." >&2
    return 1
}

make_venv() {
    python=$(find_python)
    echo "Making .venv with $("$python" --version) ..." >&2
    if ! "$python" -m venv --clear .venv >&2; then
        rm -rf .venv
        echo "\`$python -m venv\` failed: on Debian and Ubuntu run \`apt install python3-venv\`, then this again." >&2
        return 1
    fi
}

# install_into_venv STAMP PIP-ARGUMENTS...: installs the checkout itself, editable, unless that was done with this
# pyproject.toml before. The stamp is written last, so an installation that was cut short is done again.
install_into_venv() {
    stamp=.venv/.installed-for-$1
    shift
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    if ! cmp -s pyproject.toml "$stamp"; then
        echo "Installing into .venv; this takes a minute or two ..." >&2
        # Dependency groups came with pip 25.1.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$@"
        cp pyproject.toml "$stamp"
    fi
}
