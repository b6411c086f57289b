#compdef llmctl
# Completion of llmctl for zsh. Into a folder of $fpath:
#   llmctl completion zsh > "${fpath[1]}/_llmctl"
# or into ~/.zshrc, behind compinit:
#   source <(llmctl completion zsh)

_llmctl() {
    local reply code
    local -a found
    reply="$("${words[1]/#\~/$HOME}" __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)"
    code=$?
    if (( code == 10 )); then
        _files
        return
    fi
    found=("${(@f)reply}")
    found=("${(@)found:#}")
    _describe 'llmctl' found
}

if [[ "${funcstack[1]}" == "_llmctl" ]]; then
    _llmctl "$@"
else
    compdef _llmctl llmctl
fi
