# Completion of llmctl for bash. Put into ~/.bashrc:
#   source <(llmctl completion bash)

_llmctl() {
    local program="${COMP_WORDS[0]/#\~/$HOME}" reply code line
    reply="$("$program" __complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)"
    code=$?
    COMPREPLY=()
    if [ "$code" -eq 10 ]; then
        compopt -o default 2>/dev/null || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
        return
    fi
    while IFS= read -r line; do
        if [ -n "$line" ]; then COMPREPLY+=("$line"); fi
    done <<< "$reply"
    if [ "${#COMPREPLY[@]}" -eq 1 ] && [[ "${COMPREPLY[0]}" == *[:/=] ]]; then compopt -o nospace 2>/dev/null; fi
}

complete -F _llmctl llmctl
